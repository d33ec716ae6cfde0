"""The architecture weights alpha, beta, gamma: heat maps of the best epoch, and their history."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.record import Epoch, Table, Weights, best_epoch
from bmnas.report.style import (
    GREY,
    INK,
    PALETTE,
    Part,
    drawable,
    epoch_axis,
    figure_of,
    modality_colours,
)
from bmnas.spaces.cells.genotype import Cell
from bmnas.spaces.cells.operations import OPERATIONS, colours
from bmnas.spaces.description import modality_of

_WIDTH = 10.0
_PANEL_COLUMNS = 4
_ROW = 0.27  # height of a row of a heat map


def draw_weights(
    history: Sequence[Epoch], features: Sequence[str], kept: Sequence[Cell] = ()
) -> Any:
    """Return a matplotlib Figure of alpha, beta and gamma, see ``weights_parts``."""
    return figure_of(*weights_parts(history, features, kept))


def weights_parts(
    history: Sequence[Epoch], features: Sequence[str], kept: Sequence[Cell] = ()
) -> list[Part]:
    """Return the drawing of the weights as parts of a figure.

    Heat maps of the best epoch with the derived choices framed (Eq. 1, 3, 9 to 11), and how
    alpha and gamma developed. ``features`` names the first nodes of alpha; ``kept`` are the
    Cells of the run's genotype, of which the title says so where they are others than those
    framed. Raises UserError when no epoch has weights.
    """
    weighted = [(epoch, epoch.weights) for epoch in history if epoch.weights is not None]
    if not weighted:
        raise UserError("history: expected epochs with alpha, beta and gamma, received none")
    best = best_epoch([epoch for epoch, _ in weighted]) or weighted[-1][0]
    weights = next(weights for epoch, weights in weighted if epoch is best)
    cells, steps = len(weights.alpha), sum(len(table) for table in weights.beta)
    nodes = [*features, *(f"cell{k + 1}" for k in range(cells - 1))]
    framed = "what was derived"
    if kept and best.cells and tuple(kept) != best.cells:
        # Only reranking keeps other Cells than those derived in the best epoch.
        framed = "what Algorithm 1 derived; reranking chose another genotype"
    title = f"Architecture weights of epoch {best.epoch}, the best; frames: {framed}"
    slanted = sum(map(len, nodes)) > 90
    parts = [
        Part(
            _WIDTH,
            0.95 + _ROW * cells + (0.05 * min(max(map(len, nodes)), 24) if slanted else 0),
            lambda onto: _paint_alpha(onto, best, weights, nodes, slanted, title),
        ),
        Part(_WIDTH, 1.0 + _ROW * steps, lambda onto: _paint_cells(onto, best, weights)),
    ]
    if len(weighted) > 1:
        rows = [-(-count // _PANEL_COLUMNS) for count in (cells, steps)]
        parts += [
            Part(_WIDTH, 0.45 + 1.75 * rows[0], lambda on: _alpha_lines(on, weighted, best, nodes)),
            Part(_WIDTH, 0.75 + 1.6 * rows[1], lambda onto: _gamma_lines(onto, weighted, best)),
        ]
    return parts


def _paint_alpha(
    onto: Any, best: Epoch, weights: Weights, nodes: Sequence[str], slanted: bool, title: str
) -> None:
    onto.suptitle(title, fontsize=10, fontweight="bold", color=INK)
    axes = onto.subplots()
    chosen = [(k, nodes.index(name)) for k, cell in enumerate(best.cells) for name in cell.inputs]
    _heat_map(axes, weights.alpha, [f"Cell {k + 1}" for k in range(len(weights.alpha))], chosen)
    look: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    )
    axes.set_xticks(range(len(nodes)), [drawable(name, 24) for name in nodes], **look)
    axes.set_title("alpha: weight of Identity, node to Cell", loc="left")


def _paint_cells(onto: Any, best: Epoch, weights: Weights) -> None:
    widest = max(len(row) for table in weights.beta for row in table)
    labels = [op.label for op in OPERATIONS.values()][: len(weights.gamma[0][0])]
    left, right = onto.subplots(1, 2, width_ratios=[max(3, widest), 0.5 + len(labels)])
    names = [
        f"Cell {k + 1}, step {m + 1}" for k, t in enumerate(weights.beta) for m in range(len(t))
    ]
    nodes = ["x", "y", *(f"step{m + 1}" for m in range(widest - 2))]
    steps = [step for cell in best.cells for step in cell.steps]
    inputs = [(n, nodes.index(name)) for n, step in enumerate(steps) for name in step.inputs]
    _heat_map(left, [row for table in weights.beta for row in table], names, inputs)
    left.set_xticks(range(widest), [node.replace("step", "step ") for node in nodes])
    left.set_title("beta: weight of Identity, node to step", loc="left")
    chosen = [(n, list(OPERATIONS).index(step.op)) for n, step in enumerate(steps)]
    _heat_map(right, [row for table in weights.gamma for row in table], [""] * len(names), chosen)
    right.set_xticks(range(len(labels)), labels)
    right.set_title("gamma: weight of each operation", loc="left")
    for axes in (left, right):
        bound = -0.5
        for table in weights.beta[:-1]:
            bound += len(table)
            axes.axhline(bound, color=GREY, linewidth=1)


def _heat_map(
    axes: Any, table: Table | list[Any], rows: Sequence[str], frames: Sequence[tuple[int, int]]
) -> None:
    """Draw rows of numbers as coloured fields with the numbers in them; rows may be short."""
    from matplotlib.patches import Rectangle

    numbers = [value for row in table for value in row]
    width = max(len(row) for row in table)
    # A narrow range is not stretched to the full scale: equal weights should look equal.
    middle = (max(numbers) + min(numbers)) / 2
    half = max((max(numbers) - min(numbers)) / 2, 0.02)
    shown = [[*row, *[float("nan")] * (width - len(row))] for row in table]
    axes.imshow(shown, cmap="Blues", vmin=middle - half, vmax=middle + 1.6 * half, aspect="auto")
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            ink = "#ffffff" if value - middle > 0.43 * half else INK
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, color=ink)
    look: dict[str, Any] = {"fill": False, "edgecolor": PALETTE[1], "linewidth": 1.8, "zorder": 4}
    for i, j in frames:
        axes.add_patch(Rectangle((j - 0.47, i - 0.44), 0.94, 0.88, **look))
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _alpha_lines(
    onto: Any, history: Sequence[tuple[Epoch, Weights]], best: Epoch, nodes: Sequence[str]
) -> None:
    last = history[-1][1].alpha
    modalities = modality_colours([node for node in nodes if "." in node])
    for k, axes in enumerate(_panels(onto, len(last), best)):
        taken: Sequence[str] = best.cells[k].inputs if best.cells else ()
        for i, name in enumerate(nodes[: len(last[k])]):
            line = [weights.alpha[k][i] for _, weights in history]
            style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.45}
            if name in taken:
                style = {"linewidth": 1.9, "zorder": 3, "label": drawable(name, 24)}
                style["linestyle"] = "--" if name == taken[1] else "-"
            colour = modalities.get(modality_of(name), INK)
            axes.plot([epoch.epoch for epoch, _ in history], line, color=colour, **style)
        axes.set_title(f"alpha, Cell {k + 1}", loc="left")
        if taken:
            axes.legend(loc="best", handlelength=1.6)


def _gamma_lines(onto: Any, history: Sequence[tuple[Epoch, Weights]], best: Epoch) -> None:
    places = [(k, m) for k, t in enumerate(history[-1][1].gamma) for m in range(len(t))]
    panels = _panels(onto, len(places), best)
    for (k, m), axes in zip(places, panels, strict=True):
        for p, operation in enumerate(islice(OPERATIONS.values(), len(history[-1][1].gamma[k][m]))):
            line = [weights.gamma[k][m][p] for _, weights in history]
            style = "--" if operation.is_zero else "-"
            look = {"color": colours()[operation.name], "label": operation.label}
            axes.plot([epoch.epoch for epoch, _ in history], line, style, **look)
        axes.set_title(f"gamma, Cell {k + 1}, step {m + 1}", loc="left")
    lines, names = panels[0].get_legend_handles_labels()
    onto.legend(lines, names, loc="outside lower center", ncols=min(len(names), 8))


def _panels(onto: Any, count: int, best: Epoch) -> list[Any]:
    columns = min(count, _PANEL_COLUMNS)
    grid = onto.subplots(-(-count // columns), columns, squeeze=False, sharex=True)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[:count]:
        epoch_axis(axes, best.epoch)
        axes.margins(x=0.02)
        axes.tick_params(labelbottom=True)
    return panels[:count]
