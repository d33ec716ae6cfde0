"""How a search and a training went: losses, scores, learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.record import Epoch, best_epoch, load_run
from bmnas.report.style import PALETTE, Part, epoch_axis, figure_of, write_figure

#: A curve: attribute of an epoch, name for readers, colour, line style.
Curve = tuple[str, str, str, str]

_PANELS: dict[str, tuple[Curve, ...]] = {
    "loss": (
        ("train_loss", "train", PALETTE[0], "-"),
        ("architecture_loss", "architecture step", PALETTE[2], "--"),
        ("validation_loss", "validation", PALETTE[1], "-"),
    ),
    "score": (
        ("train_score", "train", PALETTE[0], "-"),
        ("validation_score", "validation", PALETTE[1], "-"),
    ),
    "learning rate": (("learning_rate", "learning rate", PALETTE[3], "-"),),
}


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
    panels: dict[str, list[Curve]] = {}
    for name, curves in _PANELS.items():
        for curve in curves:
            if any(getattr(epoch, curve[0]) is not None for epoch in epochs):
                heading = metric.replace("_", " ") if name == "score" else name
                panels.setdefault(heading, []).append(curve)

    def paint(onto: Any) -> None:
        onto.suptitle(title, fontsize=10, fontweight="bold")
        grid = onto.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, curves) in zip(grid, panels.items(), strict=True):
            _panel(axes, name, curves, epochs)

    return Part(10.0, 2.7, paint) if panels else None


def _panel(axes: Any, name: str, curves: Sequence[Curve], epochs: Sequence[Epoch]) -> None:
    for key, label, colour, style in curves:
        known = [epoch for epoch in epochs if getattr(epoch, key) is not None]
        values = [getattr(epoch, key) for epoch in known]
        look = {"color": colour, "label": label, "marker": "o" if len(known) == 1 else None}
        axes.plot([epoch.number for epoch in known], values, style, **look)
    alone = curves[0][1] if len(curves) == 1 else name
    axes.set_title(name if alone == name else f"{name}, {alone}", loc="left")
    best = best_epoch(epochs)
    epoch_axis(axes, None if best is None else best.number, epochs[0].unit)
    if best is not None and curves[-1][0] == "validation_score":
        label = f"best: {best.unit} {best.number}, {best.validation_score:.4f}"
        star = {"color": PALETTE[1], "markersize": 11, "label": label}
        axes.plot([best.number], [best.validation_score], "*", **star)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="best")
