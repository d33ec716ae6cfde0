"""How a search and a training went: curves over the epochs, and the weights of the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from bmnas.report.record import Epoch, Record, best_epoch
from bmnas.report.style import GREY, INK, PALETTE, Part, printable
from bmnas.spaces.cells.derive import cell_inputs, step_inputs
from bmnas.spaces.cells.genotype import cell_nodes, step_nodes
from bmnas.spaces.cells.operations import OPERATIONS
from bmnas.spaces.mmnas.genotype import DECODER, ENCODER, POOLS

_WIDTH = 10.0
_ROW = 0.27  # height of a row of a heat map


#: Curves by the attribute of an epoch: panel, name for readers, colour, line style.
_CURVES = {
    "train_loss": ("loss", "train", PALETTE[0], "-"),
    "architecture_loss": ("loss", "architecture step", PALETTE[2], "--"),
    "validation_loss": ("loss", "validation", PALETTE[1], "-"),
    "train_score": ("score", "train", PALETTE[0], "-"),
    "validation_score": ("score", "validation", PALETTE[1], "-"),
    "learning_rate": ("learning rate", "learning rate", PALETTE[3], "-"),
}


def history_parts(run: Record) -> list[Part]:
    """Return the curves of a run: a row for the search, its best epoch marked, one for training."""
    metric = (run.metrics.metric or "score").replace("_", " ")
    parts = [_curves("Search", run.history, metric), _curves("Training", run.training, metric)]
    return [part for part in parts if part is not None]


def weights_parts(run: Record) -> list[Part]:
    """Return heat maps of the weights of the best epoch, none where no epoch has weights.

    What Algorithm 1 derives from them is framed (Eq. 1, 3, 9 to 11), and of MMnas the likeliest
    operations; reranking may have kept another genotype.
    """
    if run.history and (chances := run.history[-1].probabilities):
        title = f"Chances of the operations after epoch {run.history[-1].number}; frames: likeliest"
        return [_fields([_chances(chances)], title)]
    epochs = [epoch for epoch in run.history if epoch.alpha]
    if not epochs:
        return []
    best = best_epoch(epochs) or epochs[-1]
    alpha, *others = _heat_maps(best, () if run.genotype is None else run.genotype.features)
    title = f"Architecture weights of epoch {best.number}, the best; frames: as Algorithm 1 derives"
    return [_fields([alpha], title), _fields(others, None)]


def _curves(title: str, epochs: Sequence[Epoch], metric: str) -> Part | None:
    """Return a row with a panel for the losses, the scores and the learning rate that there are."""
    panels: dict[str, list[str]] = {}
    for key, (panel, *_) in _CURVES.items():
        if any(getattr(epoch, key) is not None for epoch in epochs):
            panels.setdefault(metric if panel == "score" else panel, []).append(key)

    def paint(onto: Any) -> None:
        onto.suptitle(title, fontsize=10, fontweight="bold")
        grid = onto.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, keys) in zip(grid, panels.items(), strict=True):
            _panel(axes, name, keys, epochs)

    return Part(_WIDTH, 2.7, paint) if panels else None


def _panel(axes: Any, name: str, keys: Sequence[str], epochs: Sequence[Epoch]) -> None:
    from matplotlib.ticker import MaxNLocator

    for key in keys:
        _, label, colour, line = _CURVES[key]
        known = [epoch for epoch in epochs if getattr(epoch, key) is not None]
        values = [getattr(epoch, key) for epoch in known]
        look = {"color": colour, "label": label, "marker": "o" if len(known) == 1 else None}
        axes.plot([epoch.number for epoch in known], values, line, **look)
    alone = label if len(keys) == 1 else name
    axes.set_title(name if alone == name else f"{name}, {alone}", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.set_xlabel(epochs[0].unit)
    axes.grid(axis="y")
    if (best := best_epoch(epochs)) is not None:
        axes.axvline(best.number, color=GREY, linewidth=0.9, linestyle=":")
        if keys[-1] == "validation_score":
            label = f"best: {best.unit} {best.number}, {best.validation_score:.4f}"
            star = {"color": PALETTE[1], "markersize": 11, "label": label}
            axes.plot([best.number], [best.validation_score], "*", **star)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="best")


class _HeatMap(NamedTuple):
    """Weights, in rows that may be short; ``chosen`` are the columns that each derives."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    chosen: Sequence[tuple[int, ...]]


def _heat_maps(best: Epoch, features: Sequence[str]) -> tuple[_HeatMap, _HeatMap, _HeatMap]:
    """Return alpha with a row a Cell, beta and gamma with a row a step."""
    alpha, tables = best.alpha or (), best.beta or ()
    beta, gamma = list(chain(*tables)), list(chain(*(best.gamma or ())))
    cells = [f"Cell {k + 1}" for k in range(len(alpha))]
    steps = [f"Cell {k + 1}, step {m + 1}" for k, t in enumerate(tables) for m in range(len(t))]
    if len(features) != len(alpha[0]):
        features = [f"feature.{f + 1}" for f in range(len(alpha[0]))]
    nodes = cell_nodes(features, len(alpha) - 1)
    operands = step_nodes(max(map(len, beta)) - 2)
    labels = [operation.label for operation in OPERATIONS.values()][: len(gamma[0])]
    best_ops = [(int(np.argmax(row)),) for row in gamma]
    identity = "weight of Identity, node to"
    return (
        _HeatMap(f"alpha: {identity} Cell", cells, nodes, alpha, cell_inputs(alpha)),
        _HeatMap(f"beta: {identity} step", steps, operands, beta, list(map(step_inputs, beta))),
        _HeatMap("gamma: weight of each operation", steps, labels, gamma, best_ops),
    )


def _chances(rows: Sequence[Sequence[float]]) -> _HeatMap:
    """Return the probabilities of the operations of MMnas, a row a block."""
    pools = [POOLS[len(row)] for row in rows]
    chains = ["encoder" if pool == ENCODER else "decoder" for pool in pools]
    blocks = [f"{chain} {n + 1 - chains.index(chain)}" for n, chain in enumerate(chains)]
    values = [
        [row[pool.index(name)] if name in pool else math.nan for name in DECODER]
        for row, pool in zip(rows, pools, strict=True)
    ]
    return _HeatMap(
        "softmax(alpha)", blocks, DECODER, values, [(int(np.nanargmax(row)),) for row in values]
    )


def _fields(maps: Sequence[_HeatMap], title: str | None) -> Part:
    """Return heat maps of the same rows beside each other; names that are long stand slanted."""
    longest = max(len(name) for one in maps for name in one.columns)
    slanted = any(sum(map(len, one.columns)) > 90 for one in maps)
    height = 1.0 + _ROW * len(maps[0].rows) + (0.05 * min(longest, 24) if slanted else 0)

    def paint(onto: Any) -> None:
        onto.suptitle(title, fontsize=10, fontweight="bold")
        widths = [max(3, len(one.columns)) for one in maps]
        panels = onto.subplots(1, len(maps), squeeze=False, sharey=True, width_ratios=widths)[0]
        slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        for axes, one in zip(panels, maps, strict=True):
            _field(axes, one)
            names = [printable(name, 24) for name in one.columns]
            axes.set_xticks(range(len(names)), names, **slant)
            axes.set_yticks(range(len(one.rows)), one.rows)
            axes.set_title(one.title, loc="left")
            axes.tick_params(length=0, labelleft=axes is panels[0])
            axes.spines[:].set_visible(False)

    return Part(_WIDTH, height, paint)


def _field(axes: Any, one: _HeatMap) -> None:
    """Draw weights as coloured fields with the numbers in them, what was derived in frames."""
    from matplotlib.patches import Rectangle

    fields = np.full((len(one.rows), len(one.columns)), np.nan)
    for i, row in enumerate(one.values):
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
    look: dict[str, Any] = {"fill": False, "edgecolor": PALETTE[1], "linewidth": 1.8, "zorder": 4}
    for i, columns in enumerate(one.chosen):
        for j in columns:
            axes.add_patch(Rectangle((j - 0.47, i - 0.44), 0.94, 0.88, **look))
