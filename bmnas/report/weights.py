"""The architecture weights alpha, beta, gamma: heat maps of the best epoch, and their history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.machine.schema import plain
from bmnas.report.record import Epoch, best_epoch
from bmnas.report.style import (
    INK,
    PALETTE,
    Part,
    epoch_axis,
    figure_of,
    modality_colours,
    printable,
)
from bmnas.spaces.cells.operations import OPERATIONS, colours
from bmnas.spaces.description import modality_of

_WIDTH = 10.0
_PANEL_COLUMNS = 4
_ROW = 0.27  # height of a row of a heat map

#: Numbers of Cells and of steps in them, for each step.
Places = Sequence[tuple[int, int]]
#: Title of a panel, and its lines: values by epoch, how they are drawn.
Panel = tuple[str, list[tuple[list[float], dict[str, Any]]]]


def draw_weights(history: Sequence[Epoch], features: Sequence[str] = (), kept: Any = None) -> Any:
    """Return a matplotlib Figure of alpha, beta and gamma, see ``weights_parts``.

    Raises UserError when no epoch has weights.
    """
    parts = weights_parts(history, features, kept)
    if not parts:
        raise UserError("history: expected epochs with alpha, beta and gamma, received none")
    return figure_of(*parts)


def weights_parts(
    history: Sequence[Epoch], features: Sequence[str] = (), kept: Any = None
) -> list[Part]:
    """Return the drawing of the weights as parts of a figure, none where no epoch has weights.

    Heat maps of the best epoch with the derived choices framed (Eq. 1, 3, 9 to 11), and how
    alpha and gamma developed. ``features`` names the first nodes of alpha, which are numbered
    otherwise; ``kept`` are the Cells in the file of the run's genotype, of which the title says so
    where they are others than those framed.
    """
    epochs = [epoch for epoch in history if epoch.alpha]
    if not epochs:
        return []
    best = best_epoch(epochs) or epochs[-1]
    alpha, beta = best.alpha or (), best.beta or ()
    names = features or [f"feature.{f + 1}" for f in range(len(alpha[0]))]
    nodes = [*names, *(f"cell{k + 1}" for k in range(len(alpha) - 1))]
    framed = "what was derived"
    if kept and best.cells and kept != plain(best.cells):
        # Only reranking keeps other Cells than those derived in the best epoch.
        framed = "what Algorithm 1 derived; reranking chose another genotype"
    title = f"Architecture weights of epoch {best.number}, the best; frames: {framed}"
    slanted = 0.05 * min(max(map(len, nodes)), 24) if sum(map(len, nodes)) > 90 else 0
    steps = [(k, m) for k, table in enumerate(beta) for m in range(len(table))]
    parts = [
        Part(
            _WIDTH,
            0.95 + _ROW * len(alpha) + slanted,
            lambda onto: _paint_alpha(onto, best, nodes, 40 if slanted else 0, title),
        ),
        Part(_WIDTH, 1.0 + _ROW * len(steps), lambda onto: _paint_cells(onto, best, steps)),
    ]
    if len(epochs) == 1:
        return parts
    return [
        *parts,
        _lines(_alpha_panels(epochs, best, nodes), epochs, best, shared=False),
        _lines(_gamma_panels(epochs, steps), epochs, best, shared=True),
    ]


def _paint_alpha(onto: Any, best: Epoch, nodes: Sequence[str], slant: int, title: str) -> None:
    onto.suptitle(title, fontsize=10, fontweight="bold")
    axes = onto.subplots()
    rows = {f"Cell {k + 1}": row for k, row in enumerate(best.alpha or ())}
    chosen = [(k, nodes.index(name)) for k, cell in enumerate(best.cells) for name in cell.inputs]
    _heat_map(axes, "alpha: weight of Identity, node to Cell", rows, chosen)
    look = {"rotation": slant, "ha": "right", "rotation_mode": "anchor"} if slant else {}
    axes.set_xticks(range(len(nodes)), [printable(name, 24) for name in nodes], **look)


def _paint_cells(onto: Any, best: Epoch, places: Places) -> None:
    beta, gamma = best.beta or (), best.gamma or ()
    inputs = ["x", "y", *(f"step{m + 1}" for m in range(max(map(len, beta)) - 1))]
    labels = [op.label for op in OPERATIONS.values()][: len(gamma[0][0])]
    left, right = onto.subplots(1, 2, sharey=True, width_ratios=[len(inputs), 0.5 + len(labels)])
    names = [f"Cell {k + 1}, step {m + 1}" for k, m in places]
    steps = [step for cell in best.cells for step in cell.steps]
    read = [(n, inputs.index(name)) for n, step in enumerate(steps) for name in step.inputs]
    rows = dict(zip(names, (beta[k][m] for k, m in places), strict=True))
    _heat_map(left, "beta: weight of Identity, node to step", rows, read)
    left.set_xticks(range(len(inputs)), [name.replace("step", "step ") for name in inputs])
    chosen = [(n, list(OPERATIONS).index(step.op)) for n, step in enumerate(steps)]
    rows = dict(zip(names, (gamma[k][m] for k, m in places), strict=True))
    _heat_map(right, "gamma: weight of each operation", rows, chosen)
    right.set_xticks(range(len(labels)), labels)
    right.tick_params(labelleft=False)


def _heat_map(
    axes: Any, title: str, rows: Mapping[str, Sequence[float]], frames: Sequence[tuple[int, int]]
) -> None:
    """Draw rows of numbers as coloured fields with the numbers in them; rows may be short."""
    from matplotlib.patches import Rectangle

    table = np.full((len(rows), max(map(len, rows.values()))), np.nan)
    for i, row in enumerate(rows.values()):
        table[i, : len(row)] = row
    low, high = np.nanmin(table), np.nanmax(table)
    # A narrow range is not stretched to the full scale: equal weights should look equal.
    middle, half = (low + high) / 2, max((high - low) / 2, 0.02)
    axes.imshow(table, cmap="Blues", vmin=middle - half, vmax=middle + 1.6 * half, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            ink = "#ffffff" if value - middle > 0.43 * half else INK
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, color=ink)
    look: dict[str, Any] = {"fill": False, "edgecolor": PALETTE[1], "linewidth": 1.8, "zorder": 4}
    for i, j in frames:
        axes.add_patch(Rectangle((j - 0.47, i - 0.44), 0.94, 0.88, **look))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_title(title, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _alpha_panels(epochs: Sequence[Epoch], best: Epoch, nodes: Sequence[str]) -> list[Panel]:
    """Return a panel a Cell, with a line a node; the two that were derived have names."""
    modalities = modality_colours(nodes[: len(best.alpha[0])] if best.alpha else ())
    panels = []
    for k, row in enumerate(best.alpha or ()):
        taken: Sequence[str] = best.cells[k].inputs if best.cells else ()
        lines = []
        for i, name in enumerate(nodes[: len(row)]):
            look = {
                "color": modalities.get(modality_of(name), INK),
                "linewidth": 0.8,
                "alpha": 0.45,
            }
            if name in taken:
                look |= {"linewidth": 1.9, "alpha": 1, "label": printable(name, 24)}
                look["linestyle"] = "--" if name == taken[1] else "-"
            lines.append(([e.alpha[k][i] for e in epochs if e.alpha], look))
        panels.append((f"alpha, Cell {k + 1}", lines))
    return panels


def _gamma_panels(epochs: Sequence[Epoch], places: Places) -> list[Panel]:
    """Return a panel a step, with a line an operation."""
    tables = [epoch.gamma for epoch in epochs if epoch.gamma]
    known = list(OPERATIONS.values())[: len(tables[0][0][0])]
    looks = [
        {
            "color": colours()[operation.name],
            "label": operation.label,
            "linestyle": "--" if operation.is_zero else "-",
        }
        for operation in known
    ]
    return [
        (
            f"gamma, Cell {k + 1}, step {m + 1}",
            [([table[k][m][p] for table in tables], look) for p, look in enumerate(looks)],
        )
        for k, m in places
    ]


def _lines(panels: Sequence[Panel], epochs: Sequence[Epoch], best: Epoch, *, shared: bool) -> Part:
    """Return panels in rows; ``shared`` is one legend below them for all."""
    columns = min(len(panels), _PANEL_COLUMNS)
    rows = -(-len(panels) // columns)
    numbers = [epoch.number for epoch in epochs]

    def paint(onto: Any) -> None:
        grid = onto.subplots(rows, columns, squeeze=False, sharex=True)
        for axes, (title, lines) in zip(grid.flat, panels, strict=False):
            for values, look in lines:
                axes.plot(numbers, values, **look)
            axes.set_title(title, loc="left")
            epoch_axis(axes, best.number)
            axes.margins(x=0.02)
            axes.tick_params(labelbottom=True)
            if not shared and axes.get_legend_handles_labels()[1]:
                axes.legend(loc="best", handlelength=1.6)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        if shared:
            onto.legend(
                *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8
            )

    return Part(_WIDTH, 0.7 + 1.65 * rows, paint)
