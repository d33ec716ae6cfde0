"""What each modality and each feature is worth, as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bmnas.report.comparison import format_spread, spread_of
from bmnas.report.metrics import RunMetrics
from bmnas.report.record import Record
from bmnas.report.style import GREY, INK, Part, modality_colours, printable, tint
from bmnas.report.tables import TextTable
from bmnas.spaces.description import modality_of

_WIDTH = 10.0
_ROW = 0.24  # height of a bar and the room around it


def importance_parts(run: Record) -> list[Part]:
    """Return bars of how far the score falls when a modality or a feature is shuffled.

    Features follow their modality, paler. Empty where it was not measured.
    """
    worth = run.metrics.importance
    if worth is None:
        return []
    drops = {**worth.modalities, **worth.features}
    colours = modality_colours(list(drops))
    # Stable: a modality stays in front of its features.
    names = sorted(drops, key=lambda name: list(colours).index(modality_of(name)))
    metric = (run.metrics.metric or "score").replace("_", " ")

    def paint(onto: Any) -> None:
        onto.suptitle("What each part is worth", fontsize=10, fontweight="bold")
        axes = onto.subplots()
        means = [drops[name].mean for name in names]
        own = [colours[modality_of(name)] for name in names]
        shades = [
            colour if name in worth.modalities else tint(colour, 0.45)
            for name, colour in zip(names, own, strict=True)
        ]
        errors = {"xerr": [drops[name].deviation for name in names], "ecolor": INK, "capsize": 2}
        axes.barh(range(len(names)), means, color=shades, height=0.7, **errors)
        axes.set_yticks(range(len(names)), [printable(name, 24) for name in names])
        axes.invert_yaxis()
        axes.axvline(0, color=GREY, linewidth=0.9)
        axes.grid(axis="x")
        axes.set_xlabel(
            f"{metric} lost when it is shuffled between {worth.samples:,} validation samples; "
            f"{worth.score:.4f} without, {worth.repeats} repeats"
        )

    return [Part(_WIDTH, 0.95 + _ROW * len(names), paint)]


def importance_tables(tasks: Mapping[str, Mapping[str, Sequence[RunMetrics]]]) -> list[TextTable]:
    """Return a table a task: what each modality is worth to the ways to fuse, over their runs.

    Ways of which a run was not measured are left out, and tasks without any other.
    """
    tables = []
    for task, ways in tasks.items():
        known = {
            way: [run.importance.modalities for run in runs if run.importance]
            for way, runs in ways.items()
            if all(run.importance for run in runs)
        }
        modalities = dict.fromkeys(m for runs in known.values() for run in runs for m in run)
        lines = []
        for way, runs in known.items():
            drops = ([run[m].mean if m in run else None for run in runs] for m in modalities)
            lines.append((way, *(format_spread(spread_of(drop), ".4f") for drop in drops)))
        if lines:
            title = f"Score lost on validation when a modality is shuffled, {task}"
            tables.append(TextTable(title, ("strategy", *modalities), tuple(lines)))
    return tables
