"""What a network said of every test sample: a table of all, and pictures of where it is wrong."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmnas.machine.files import atomic_path
from bmnas.report.metrics import RunMetrics
from bmnas.report.record import Record
from bmnas.report.style import GREY, INK, PALETTE, Part, printable
from bmnas.report.tables import TextTable
from bmnas.tasks.task import Task
from bmnas.tasks.text_arrays import reading

_CELL, _LEAST, _MOST = 0.26, 2.4, 10.0  # inches
_LEGIBLE = 20  # columns of numbers
_TABLE = 12  # columns that a terminal has room for
_OF_NUMBERS = "r2"  # the metric of regression, whose module needs torch
_POINTS, _SIDE = 2000, 3.3  # of predicted numbers; inches


def write_predictions(path: Path, task: Task, columns: Mapping[str, Sequence[object]]) -> None:
    """Write a CSV file with a row for each test sample: its number, its name, and ``columns``."""
    samples = task.samples("test").tolist()
    first: dict[str, Sequence[object]] = {"sample": samples}
    if task.names:
        first["name"] = [task.names[sample] for sample in samples]
    table = {**first, **columns}
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def confusion_tables(metrics: RunMetrics) -> list[TextTable]:
    """Return the counts; none of many columns, of which predictions.csv and the picture tell."""
    found = None if metrics.test is None else metrics.test.confusion
    if found is None or len(found.columns) > _TABLE:
        return []
    lines = tuple(
        (printable(name), *(f"{count:,}" for count in counts))
        for name, counts in zip(found.rows, found.counts, strict=True)
    )
    title = "Test predictions (columns) of each label (rows)"
    return [TextTable(title, ("label", *map(printable, found.columns)), lines)]


def confusion_parts(run: Record) -> list[Part]:
    """Return the counts as a picture, darker the larger their share of a row; empty without."""
    found = None if run.metrics.test is None else run.metrics.test.confusion
    if found is None:
        return []
    height = min(max(_CELL * len(found.rows), _LEAST), _MOST)

    def paint(onto: Any) -> None:
        onto.suptitle("Test predictions of each label", fontsize=10, fontweight="bold")
        axes = onto.subplots()
        shares = [[n / max(sum(row), 1) for n in row] for row in found.counts]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(
            range(len(found.columns)),
            [printable(name, 16) for name in found.columns],
            rotation=90 if len(found.columns) > 8 else 0,
        )
        axes.set_yticks(range(len(found.rows)), [printable(name, 24) for name in found.rows])
        axes.set_xlabel("prediction")
        axes.set_ylabel("label")
        if len(found.columns) > _LEGIBLE:
            return
        for i, row in enumerate(found.counts):
            for j, count in enumerate(row):
                colour = "white" if shares[i][j] > 0.6 else INK
                axes.text(j, i, f"{count:,}", ha="center", va="center", size=7, color=colour)

    return [Part(10.0, height + 1.4, paint)]


def scatter_parts(run: Record) -> list[Part]:
    """Return predicted numbers against the labels as pictures, of ``predictions.csv``; or nothing.

    Raises UserError for a file that holds something else.
    """
    path = run.path / "predictions.csv"
    if run.metrics.metric != _OF_NUMBERS or not path.is_file():
        return []
    with reading(str(path)), path.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
        chosen = rows[:: max(-(-len(rows) // _POINTS), 1)]
        points = {
            label: [[float(row[name]) for row in chosen] for name in (label, predicted)]
            for label in ([*rows[0]] if rows else [])
            if label.startswith("label")
            if (predicted := f"prediction{label.removeprefix('label')}") in rows[0]
        }
    if not points:
        return []

    def paint(onto: Any) -> None:
        onto.suptitle("Test predictions by label", fontsize=10, fontweight="bold")
        across = min(len(points), 3)
        grid = [*onto.subplots(-(-len(points) // 3), across, squeeze=False).flat]
        for axes, (name, (labels, predictions)) in zip(grid, points.items(), strict=False):
            ends = [min(labels), max(labels)]
            axes.plot(ends, ends, color=GREY, linewidth=0.8, zorder=0)  # where they are equal
            axes.scatter(labels, predictions, s=6, alpha=0.5, linewidths=0, color=PALETTE[0])
            axes.set_xlabel(printable(name, 24))
            axes.set_ylabel("prediction")
        for axes in grid[len(points) :]:
            axes.set_axis_off()

    return [Part(10.0, _SIDE * -(-len(points) // 3) + 0.5, paint)]
