"""How a search and a training went: losses, scores, learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.record import Epoch, best_epoch
from bmnas.report.style import GREY, PALETTE, Part, figure_of

#: Curves of a panel: name in the file, name for readers, colour, line style.
Curve = tuple[str, str, str, str]

_LOSSES: tuple[Curve, ...] = (
    ("train_loss", "train", PALETTE[0], "-"),
    ("architecture_loss", "architecture step", PALETTE[2], "--"),
    ("validation_loss", "validation", PALETTE[1], "-"),
)
_SCORES: tuple[Curve, ...] = (
    ("train_score", "train", PALETTE[0], "-"),
    ("validation_score", "validation", PALETTE[1], "-"),
)
_RATES: tuple[Curve, ...] = (("learning_rate", "learning rate", PALETTE[3], "-"),)

_SIZE = (10.0, 2.7)


def draw_history(
    search: Sequence[Epoch], training: Sequence[Epoch] = (), metric: str = "score"
) -> Any:
    """Return a matplotlib Figure of the curves of a search and of the training after it.

    ``metric`` names the score on the axes; the best epoch of the search is marked. Raises
    UserError when there is no epoch at all or matplotlib is missing.
    """
    parts = history_parts(search, training, metric)
    if not parts:
        raise UserError("history: expected at least one epoch with numbers, received none")
    return figure_of(*parts)


def history_parts(search: Sequence[Epoch], training: Sequence[Epoch], metric: str) -> list[Part]:
    """Return the curves as parts of a larger figure: a row for the search, one for training."""
    rows = (("Search", search), ("Training", training))
    return [_row(title, epochs, metric) for title, epochs in rows if _panels_of(epochs, metric)]


def _row(title: str, epochs: Sequence[Epoch], metric: str) -> Part:
    return Part(*_SIZE, lambda onto: _paint(onto, title, epochs, metric))


def _panels_of(epochs: Sequence[Epoch], metric: str) -> list[tuple[str, list[Curve]]]:
    """Return the panels that have something to show, each with its curves."""
    present = {name for epoch in epochs for name in epoch.values}
    panels = (("loss", _LOSSES), (metric.replace("_", " "), _SCORES), ("learning rate", _RATES))
    kept = [(name, [c for c in curves if c[0] in present]) for name, curves in panels]
    return [(name, curves) for name, curves in kept if curves]


def _paint(onto: Any, title: str, epochs: Sequence[Epoch], metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    panels = _panels_of(epochs, metric)
    onto.suptitle(title, fontsize=10, fontweight="bold")
    grid = onto.subplots(1, len(panels), squeeze=False)[0]
    best = best_epoch(epochs)
    for axes, (name, curves) in zip(grid, panels, strict=True):
        for key, label, colour, style in curves:
            points = [(e.epoch, e.values[key]) for e in epochs if key in e.values]
            x, y = zip(*points, strict=True)
            marker = "o" if len(points) == 1 else None
            axes.plot(x, y, style, color=colour, label=label, marker=marker)
        alone = curves[0][1] if len(curves) == 1 else name
        axes.set_title(name if alone == name else f"{name}, {alone}", loc="left")
        axes.set_xlabel("epoch")
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if best is not None:
            axes.axvline(best.epoch, color=GREY, linewidth=0.9, linestyle=":")
        if best is not None and any(key == "validation_score" for key, *_ in curves):
            score = best.values.get("validation_score")
            if score is not None:
                label = f"best: epoch {best.epoch}, {score:.4f}"
                axes.plot([best.epoch], [score], "*", color=PALETTE[1], markersize=11, label=label)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(loc="best")
