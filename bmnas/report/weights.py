"""The architecture weights alpha, beta, gamma: heat maps of the best epoch, and their history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.record import Epoch, Weights, best_epoch
from bmnas.report.style import (
    GREY,
    INK,
    PALETTE,
    Part,
    drawable,
    figure_of,
    modality_colours,
    modality_of,
)
from bmnas.spaces.cells.genotype import Cell
from bmnas.spaces.cells.operations import OPERATIONS, colours, operation_names

_WIDTH = 10.0
_PANEL_COLUMNS = 4
_ROW = 0.27  # height of a row of a heat map

Values = Sequence[Sequence[float | None]]


def draw_weights(
    history: Sequence[Epoch], features: Sequence[str], kept: Sequence[Cell] = ()
) -> Any:
    """Return a matplotlib Figure of alpha, beta and gamma.

    Heat maps of the best epoch with the derived choices framed (Eq. 1, 3, 9 to 11), and how
    alpha and gamma developed. ``features`` names the first nodes of alpha; ``kept`` are the
    Cells of the run's genotype, of which the title says so where they are others than those
    framed. Raises UserError when no epoch has weights or matplotlib is missing.
    """
    return figure_of(*weights_parts(history, features, kept))


def weights_parts(
    history: Sequence[Epoch], features: Sequence[str], kept: Sequence[Cell] = ()
) -> list[Part]:
    """Return the drawing of the weights as parts of a larger figure."""
    weighted = [epoch for epoch in history if epoch.weights is not None]
    best = best_epoch(weighted) or (weighted[-1] if weighted else None)
    if best is None or best.weights is None:
        raise UserError("history: expected epochs with alpha, beta and gamma, received none")
    weights, cells = best.weights, len(best.weights.alpha)
    nodes = [*features, *(f"cell{k + 1}" for k in range(cells - 1))]
    longest = max(len(name) for name in nodes)
    slanted = longest * len(nodes) > 90
    alpha_height = 0.95 + _ROW * cells + (0.05 * min(longest, 30) if slanted else 0)
    steps = sum(len(table) for table in weights.beta)
    title = f"Architecture weights of epoch {best.epoch}, the best; frames: {_framed(best, kept)}"
    parts = [
        Part(_WIDTH, alpha_height, lambda onto: _paint_alpha(onto, best, nodes, slanted, title)),
        Part(_WIDTH, 1.0 + _ROW * steps, lambda onto: _paint_cells(onto, best, weights)),
    ]
    if len(weighted) > 1:
        parts += [
            Part(
                _WIDTH,
                0.45 + 1.75 * _rows_of(cells),
                lambda onto: _paint_alpha_lines(onto, weighted, best, nodes),
            ),
            Part(
                _WIDTH,
                0.75 + 1.6 * _rows_of(steps),
                lambda onto: _paint_gamma_lines(onto, weighted, best),
            ),
        ]
    return parts


def _framed(best: Epoch, kept: Sequence[Cell]) -> str:
    if not kept or not best.cells or tuple(kept) == best.cells:
        return "what was derived"
    # Only reranking keeps other Cells than those derived in the best epoch.
    return "what Algorithm 1 derived; reranking chose another genotype"


def _paint_alpha(onto: Any, best: Epoch, nodes: Sequence[str], slanted: bool, title: str) -> None:
    assert best.weights is not None
    onto.suptitle(title, fontsize=10, fontweight="bold", color=INK)
    axes = onto.subplots()
    alpha = best.weights.alpha
    rows = [[*row, *[None] * (len(nodes) - len(row))] for row in alpha]
    chosen = [
        (k, nodes.index(name))
        for k, cell in enumerate(best.cells[: len(alpha)])
        for name in cell.inputs
    ]
    names = [f"Cell {k + 1}" for k in range(len(alpha))]
    _heat_map(axes, rows, names, nodes, chosen)
    axes.set_title("alpha: weight of Identity, node to Cell", loc="left")
    if slanted:
        axes.tick_params(axis="x", labelrotation=40)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")


def _paint_cells(onto: Any, best: Epoch, weights: Weights) -> None:
    left, right = onto.subplots(1, 2, width_ratios=[max(3, len(weights.beta[0][-1])), 5.5])
    names = [
        f"Cell {k + 1}, step {m + 1}" for k, t in enumerate(weights.beta) for m in range(len(t))
    ]
    width = max(len(row) for table in weights.beta for row in table)
    beta = [[*row, *[None] * (width - len(row))] for table in weights.beta for row in table]
    gamma = [list(row) for table in weights.gamma for row in table]
    nodes = ["x", "y", *(f"step{m + 1}" for m in range(width - 2))]
    steps = [step for cell in best.cells for step in cell.steps]
    inputs = [(n, nodes.index(name)) for n, step in enumerate(steps) for name in step.inputs]
    _heat_map(left, beta, names, [n.replace("step", "step ") for n in nodes], inputs)
    left.set_title("beta: weight of Identity, node to step", loc="left")
    operations = [operation.label for operation in OPERATIONS.values()]
    chosen = [(n, operation_names().index(step.op)) for n, step in enumerate(steps)]
    _heat_map(right, gamma, [""] * len(names), operations, chosen)
    right.set_title("gamma: weight of each operation", loc="left")
    for axes in (left, right):
        bound = 0
        for table in weights.beta[:-1]:
            bound += len(table)
            axes.axhline(bound - 0.5, color=GREY, linewidth=1)


def _heat_map(
    axes: Any,
    values: Values,
    rows: Sequence[str],
    columns: Sequence[str],
    frames: Sequence[tuple[int, int]],
) -> None:
    """Draw a table of numbers as coloured fields with the numbers in them; None stays empty."""
    from matplotlib.patches import Rectangle

    numbers = [v for row in values for v in row if v is not None]
    # A narrow range is not stretched to the full scale: equal weights should look equal.
    middle = (max(numbers) + min(numbers)) / 2
    half = max((max(numbers) - min(numbers)) / 2, 0.02)
    shown = [[float("nan") if v is None else v for v in row] for row in values]
    axes.imshow(shown, cmap="Blues", vmin=middle - half, vmax=middle + 1.6 * half, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value is None:
                continue
            dark = (value - middle + half) / (2.6 * half) > 0.55
            colour = "#ffffff" if dark else INK
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, color=colour)
    for i, j in frames:
        look: dict[str, Any] = {
            "fill": False,
            "edgecolor": PALETTE[1],
            "linewidth": 1.8,
            "zorder": 4,
        }
        axes.add_patch(Rectangle((j - 0.47, i - 0.44), 0.94, 0.88, **look))
    axes.set_xticks(range(len(columns)), [drawable(name, 24) for name in columns])
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _paint_alpha_lines(
    onto: Any, history: Sequence[Epoch], best: Epoch, nodes: Sequence[str]
) -> None:
    assert best.weights is not None
    count = len(best.weights.alpha)
    panels = _panels(onto, count, history, best)
    colours = modality_colours([node for node in nodes if "." in node])
    for k, axes in enumerate(panels):
        taken = best.cells[k].inputs if best.cells else ()
        for i in range(len(best.weights.alpha[k])):
            name = nodes[i]
            line = [e.weights.alpha[k][i] for e in history if e.weights is not None]
            colour = colours.get(modality_of(name), INK)
            chosen = name in taken
            style = "--" if len(taken) > 1 and name == taken[1] else "-"
            look = {"linewidth": 1.9, "zorder": 3} if chosen else {"linewidth": 0.8, "alpha": 0.45}
            (drawn,) = axes.plot([e.epoch for e in history], line, style, color=colour, **look)
            if chosen:
                drawn.set_label(drawable(name, 24))
        axes.set_title(f"alpha, Cell {k + 1}", loc="left")
        if taken:
            axes.legend(loc="best", handlelength=1.6)


def _paint_gamma_lines(onto: Any, history: Sequence[Epoch], best: Epoch) -> None:
    assert best.weights is not None
    places = [(k, m) for k, table in enumerate(best.weights.gamma) for m in range(len(table))]
    panels = _panels(onto, len(places), history, best)
    lines, palette = [], colours()
    for (k, m), axes in zip(places, panels, strict=True):
        lines = [
            axes.plot(
                [e.epoch for e in history],
                [e.weights.gamma[k][m][p] for e in history if e.weights is not None],
                color=palette[op],
                linestyle="--" if OPERATIONS[op].is_zero else "-",
            )[0]
            for p, op in enumerate(operation_names())
        ]
        axes.set_title(f"gamma, Cell {k + 1}, step {m + 1}", loc="left")
    names = [operation.label for operation in OPERATIONS.values()]
    onto.legend(lines, names, loc="outside lower center", ncols=len(names))


def _panels(onto: Any, count: int, history: Sequence[Epoch], best: Epoch) -> list[Any]:
    from matplotlib.ticker import MaxNLocator

    columns = min(count, _PANEL_COLUMNS)
    grid = onto.subplots(_rows_of(count), columns, squeeze=False, sharex=True)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[:count]:
        axes.axvline(best.epoch, color=GREY, linewidth=0.9, linestyle=":")
        axes.grid(axis="y")
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
        axes.tick_params(labelbottom=True)
    for axes in panels[max(0, count - columns) : count]:
        axes.set_xlabel("epoch")
    return panels[:count]


def _rows_of(count: int) -> int:
    return -(-count // _PANEL_COLUMNS)
