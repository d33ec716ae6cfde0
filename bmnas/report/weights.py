"""The architecture weights alpha, beta, gamma: heat maps of the best epoch, and their history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
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


@dataclass(frozen=True)
class _Table:
    """One kind of weights: ``rows_of`` an epoch, of which ``chosen`` places were derived."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    colours: Sequence[str]
    chosen: Sequence[tuple[int, int]]
    rows_of: Callable[[Epoch], Sequence[Sequence[float]]]


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
    framed = "what was derived"
    if kept and best.cells and kept != plain(best.cells):
        # Only reranking keeps other Cells than those derived in the best epoch.
        framed = "what Algorithm 1 derived; reranking chose another genotype"
    title = f"Architecture weights of epoch {best.number}, the best; frames: {framed}"
    alpha, beta, gamma = _alpha(best, features), _beta(best), _gamma(best)
    heights = 0.95 + _ROW * len(alpha.rows) + _slant(alpha), 1.0 + _ROW * len(beta.rows)
    parts = [
        Part(_WIDTH, heights[0], lambda onto: _heat_maps(onto, best, [alpha], title)),
        Part(_WIDTH, heights[1], lambda onto: _heat_maps(onto, best, [beta, gamma], None)),
    ]
    return parts if len(epochs) == 1 else [*parts, *(_lines(epochs, t) for t in (alpha, gamma))]


def _alpha(best: Epoch, features: Sequence[str]) -> _Table:
    rows = best.alpha or ()
    names = features or [f"feature.{f + 1}" for f in range(len(rows[0]))]
    nodes = [*names, *(f"cell{k + 1}" for k in range(len(rows) - 1))]
    modalities = modality_colours(names)
    return _Table(
        "alpha: weight of Identity, node to Cell",
        [f"Cell {k + 1}" for k in range(len(rows))],
        nodes,
        [modalities.get(modality_of(name), INK) for name in nodes],
        [(k, nodes.index(name)) for k, cell in enumerate(best.cells) for name in cell.inputs],
        lambda epoch: epoch.alpha or (),
    )


def _beta(best: Epoch) -> _Table:
    nodes = ["x", "y", *(f"step{m + 1}" for m in range(max(map(len, best.beta or ())) - 1))]
    steps = [step for cell in best.cells for step in cell.steps]
    return _Table(
        "beta: weight of Identity, node to step",
        [
            f"Cell {k + 1}, step {m + 1}"
            for k, t in enumerate(best.beta or ())
            for m in range(len(t))
        ],
        nodes,
        [INK] * len(nodes),
        [(n, nodes.index(name)) for n, step in enumerate(steps) for name in step.inputs],
        lambda epoch: list(chain(*(epoch.beta or ()))),
    )


def _gamma(best: Epoch) -> _Table:
    pool = list(OPERATIONS.values())[: len((best.gamma or ())[0][0])]
    steps = [step for cell in best.cells for step in cell.steps]
    return _Table(
        "gamma: weight of each operation",
        _beta(best).rows,
        [operation.label for operation in pool],
        [colours()[operation.name] for operation in pool],
        [(n, list(OPERATIONS).index(step.op)) for n, step in enumerate(steps)],
        lambda epoch: list(chain(*(epoch.gamma or ()))),
    )


def _slant(table: _Table) -> float:
    """Return the height of names that stand slanted, 0 where they are short enough."""
    lengths = [len(name) for name in table.columns]
    return 0.05 * min(max(lengths), 24) if sum(lengths) > 90 else 0.0


def _heat_maps(onto: Any, best: Epoch, tables: Sequence[_Table], title: str | None) -> None:
    """Draw weights as coloured fields with the numbers in them; a row may be short."""
    from matplotlib.patches import Rectangle

    onto.suptitle(title, fontsize=10, fontweight="bold")
    widths = [max(3, len(table.columns)) for table in tables]
    panels = onto.subplots(1, len(tables), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axes, table in zip(panels, tables, strict=True):
        fields = np.full((len(table.rows), len(table.columns)), np.nan)
        for i, row in enumerate(table.rows_of(best)):
            fields[i, : len(row)] = row
        low, high = np.nanmin(fields), np.nanmax(fields)
        # A narrow range is not stretched to the full scale: equal weights should look equal.
        middle, half = (low + high) / 2, max((high - low) / 2, 0.02)
        scale = {"vmin": middle - half, "vmax": middle + 1.6 * half}
        axes.imshow(fields, cmap="Blues", aspect="auto", **scale)
        for (i, j), value in np.ndenumerate(fields):
            if not np.isnan(value):
                ink = "#ffffff" if value - middle > 0.43 * half else INK
                axes.text(j, i, f"{value:.3f}", ha="center", va="center", size=7, color=ink)
        look: dict[str, Any] = {
            "fill": False,
            "edgecolor": PALETTE[1],
            "linewidth": 1.8,
            "zorder": 4,
        }
        for i, j in table.chosen:
            axes.add_patch(Rectangle((j - 0.47, i - 0.44), 0.94, 0.88, **look))
        slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if _slant(table) else {}
        axes.set_xticks(
            range(len(table.columns)), [printable(n, 24) for n in table.columns], **slant
        )
        axes.set_yticks(range(len(table.rows)), table.rows)
        axes.set_title(table.title, loc="left")
        axes.tick_params(length=0, labelleft=axes is panels[0])
        axes.spines[:].set_visible(False)


def _lines(epochs: Sequence[Epoch], table: _Table) -> Part:
    """Return a panel a row of the table, with a line a column; what was chosen is bold."""
    columns = min(len(table.rows), _PANEL_COLUMNS)
    lines = -(-len(table.rows) // columns)
    best = best_epoch(epochs)

    def paint(onto: Any) -> None:
        from matplotlib.lines import Line2D

        grid = onto.subplots(lines, columns, squeeze=False, sharex=True)
        for i, (axes, row) in enumerate(zip(grid.flat, table.rows, strict=False)):
            for j in range(len(table.rows_of(epochs[-1])[i])):
                values = [table.rows_of(epoch)[i][j] for epoch in epochs]
                bold = (i, j) in table.chosen
                look = {"color": table.colours[j], "linewidth": 2.2 if bold else 1}
                look |= {"alpha": 1 if bold else 0.6}
                look |= {"label": printable(table.columns[j], 24)} if bold else {}
                axes.plot([epoch.number for epoch in epochs], values, **look)
            axes.set_title(f"{table.title.partition(':')[0]}, {row}", loc="left")
            epoch_axis(axes, None if best is None else best.number)
            axes.margins(x=0.02)
            if any(chosen == i for chosen, _ in table.chosen):
                axes.legend(loc="best")
            axes.tick_params(labelbottom=True)
        for axes in grid.flat[len(table.rows) :]:
            axes.set_axis_off()
        if len(set(table.colours)) == len(table.columns):
            handles = [Line2D([], [], color=colour) for colour in table.colours]
            names = [printable(name, 24) for name in table.columns]
            onto.legend(handles, names, loc="outside lower center", ncols=8)

    return Part(_WIDTH, 0.55 + 0.2 * -(-len(table.columns) // 8) + 1.6 * lines, paint)
