"""How a search and a training went: losses, scores, learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.record import Epoch, best_epoch, load_run
from bmnas.report.style import PALETTE, Part, epoch_axis, figure_of, write_figure

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


def write_history(folder: str | Path, path: str | Path) -> None:
    """Draw the curves of the run ``folder`` to an .svg or .png file, whole or not at all."""
    run = load_run(folder)
    metric = run.metrics.metric or "score"
    write_figure(draw_history(run.history, run.training, metric), Path(path))


def history_parts(search: Sequence[Epoch], training: Sequence[Epoch], metric: str) -> list[Part]:
    """Return the curves as parts of a larger figure: a row for the search, one for training."""
    parts = [_row("Search", search, metric), _row("Training", training, metric)]
    return [part for part in parts if part is not None]


def _row(title: str, epochs: Sequence[Epoch], metric: str) -> Part | None:
    present = {name for epoch in epochs for name in epoch.values}
    panels = [
        (name, [curve for curve in curves if curve[0] in present])
        for name, curves in (
            ("loss", _LOSSES),
            (metric.replace("_", " "), _SCORES),
            ("learning rate", _RATES),
        )
    ]
    panels = [(name, curves) for name, curves in panels if curves]

    def paint(onto: Any) -> None:
        onto.suptitle(title, fontsize=10, fontweight="bold")
        best = best_epoch(epochs)
        grid = onto.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, curves) in zip(grid, panels, strict=True):
            _panel(axes, name, curves, epochs, best)

    return Part(10.0, 2.7, paint) if panels else None


def _panel(
    axes: Any, name: str, curves: Sequence[Curve], epochs: Sequence[Epoch], best: Epoch | None
) -> None:
    for key, label, colour, style in curves:
        points = [(e.epoch, e.values[key]) for e in epochs if key in e.values]
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, marker=marker)
    alone = curves[0][1] if len(curves) == 1 else name
    axes.set_title(name if alone == name else f"{name}, {alone}", loc="left")
    epoch_axis(axes, None if best is None else best.epoch, epochs[0].unit)
    if best is not None and curves[-1][0] == "validation_score" in best.values:
        score = best.values["validation_score"]
        label = f"best: {best.unit} {best.epoch}, {score:.4f}"
        axes.plot([best.epoch], [score], "*", color=PALETTE[1], markersize=11, label=label)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="best")
