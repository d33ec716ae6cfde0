"""What a task consists of, as tables, as a page and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from bmnas.report.contact_sheet import contact_sheet
from bmnas.report.page import figure_html, page
from bmnas.report.style import printable
from bmnas.report.tables import DASH, TextTable, html_tables, shown
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.load import FOLDER_TASKS
from bmnas.tasks.survey import ReadModality, Survey, duplicates
from bmnas.tasks.task import PARTS, Part

_SPREAD = ("mean", "deviation", "least", "5 %", "median", "95 %", "most")
_QUANTILES = (0, 0.05, 0.5, 0.95, 1)
_MOST_CLASSES = 12  # that are listed; of more, half of them are the most frequent, half the least


def published(found: Survey) -> dict[str, int]:
    """Return how many samples of each part were published, nothing where nobody says it."""
    known = FOLDER_TASKS.get(str(found.task.source.get("task")))
    if known is None or known.samples is None:
        return {}
    return dict(zip(PARTS, known.samples, strict=True))


def published_notes(found: Survey) -> Iterator[str]:
    """Yield a line for each part that has other samples than published."""
    for part, expected in published(found).items():
        count = len(found.task.samples(cast("Part", part)))
        if count != expected:
            lacking = f"{abs(expected - count):,} {'missing' if count < expected else 'too many'}"
            yield f"{part}: {count:,} samples, {expected:,} published: {lacking}"


def survey_tables(found: Survey) -> list[TextTable]:
    """Return the samples of each part, the classes and the modalities."""
    task, expected = found.task, published(found)
    rows = tuple(
        (part, f"{len(task.samples(part)):,}", shown(expected.get(part)))
        for part in PARTS
        if task.part.ndim
    )
    tables = [TextTable("Samples", ("part", "samples", "published"), rows).measured()]
    if found.counts is not None:
        tables.append(_classes(found, found.counts))
    if spread := label_spread(found):
        lines = tuple(
            (printable(name), part, *map(shown, each.values()))
            for name, parts in spread.items()
            for part, each in parts.items()
        )
        tables.append(TextTable("Labels", ("label", "part", *_SPREAD), lines, words=2))
    if found.modalities:
        forms = tuple(map(_form, found.modalities))
        read = tuple(
            (
                one.modality.name,
                *(f"{count:,}" for count in (one.rows, one.read)),
                f"{one.seconds:,.1f}",
                *(f"{len(rows):,}" for rows in (one.constant, one.unusable)),
            )
            for one in found.modalities
        )
        columns = ("modality", "rows", "read", "seconds", "constant", "unusable")
        tables += [
            TextTable("Modalities", ("modality", "type", "backbone", "row", "values"), forms, 5),
            TextTable("Rows", columns, read),
        ]
        files = tuple((one.modality.name, one.files) for one in found.modalities if one.files)
        if files:
            tables.append(TextTable("Files", ("modality", "what they are"), files, 2))
    return tables


def label_spread(found: Survey) -> dict[str, dict[str, dict[str, float]]]:
    """Return how the numbers that are labels are spread, by name and part; nothing of classes."""
    task = found.task
    if not found.modalities or not task_kind(task.kind).NUMBERS:
        return {}
    spread: dict[str, dict[str, dict[str, float]]] = {}
    for part in PARTS:
        labels = task.labels[task.samples(part)].astype(np.float64)
        for name, own in zip(task.class_names, labels.T, strict=True):
            numbers = own[np.isfinite(own)]
            if len(numbers):
                known = numbers.mean(), numbers.std(), *np.quantile(numbers, _QUANTILES)
                spread.setdefault(name, {})[part] = dict(
                    zip(_SPREAD, map(float, known), strict=True)
                )
    return spread


def unusable_lines(found: Survey) -> Iterator[str]:
    """Yield a line for each row that cannot be used: the reason, and whose it is."""
    for _, _, reason, samples in found.unusable():
        more = f" and {len(samples) - 1} more samples" if len(samples) > 1 else ""
        yield f"{reason} ({sample_name(found, samples[0])}{more})"


def sample_name(found: Survey, sample: int) -> str:
    """Return the part, number and name of a sample."""
    name = f" {found.task.names[sample]}" if found.task.names else ""
    return f"{PARTS[found.task.part[sample]]} sample {sample}{name}"


def survey_page(found: Survey) -> str:
    """Return a self-contained HTML page: tables, rows that cannot be used, some samples."""
    task = found.task
    sections = [("Contents", html_tables(survey_tables(found)))]
    lines = [*found.problems, *unusable_lines(found), *duplicates(found)]
    if lines:
        table = TextTable("", ("problem",), tuple((line,) for line in lines))
        sections.append(("Problems", html_tables([table])))
    if found.modalities:
        sections.append(("Some samples", figure_html(contact_sheet(found), "a")))
    facts = [f"kind: {task.kind}", f"classes: {task.classes}", f"licence: {task.licence}"]
    return page(f"Task {task.name}", facts, sections)


def survey_data(found: Survey) -> dict[str, Any]:
    """Return all of it for --json."""
    task = found.task
    labels = {}
    if found.counts is not None:
        counts = (dict(zip(PARTS, of_class, strict=True)) for of_class in found.counts.T.tolist())
        labels = dict(zip(task.class_names, counts, strict=True))
    return {
        "task": task.name,
        "kind": task.kind,
        "samples": {part: len(task.samples(part)) for part in PARTS},
        "published": published(found) or None,
        "left_out": len(task.left_out),
        "classes": labels,
        "labels": label_spread(found),
        "modalities": {
            read.modality.name: {
                "type": read.modality.type,
                "backbone": _backbone(read),
                "shape": list(read.modality.data.shape[1:]),
                "dtype": str(read.modality.data.dtype),
                "low": read.low,
                "high": read.high,
                "rows": read.rows,
                "read": read.read,
                "seconds": read.seconds,
                "constant": read.constant,
                "files": read.files or None,
            }
            for read in found.modalities
        },
        "problems": found.problems,
        "duplicates": list(duplicates(found)),
        "unusable": [
            {
                "modality": modality.name,
                "row": row,
                "reason": reason,
                "samples": [sample_name(found, sample) for sample in samples],
            }
            for modality, row, reason, samples in found.unusable()
        ],
    }


def _classes(found: Survey, counts: Any) -> TextTable:
    names, samples = found.task.class_names, max(len(found.task.part), 1)
    totals = counts.sum(0)
    order = np.argsort(-totals, kind="stable").tolist()
    title = f"Classes, {len(names)}"
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        order = [*order[:half], *order[-half:]]
        title += f": the {half} most and the {half} least frequent"
    lines = tuple(
        (
            printable(names[k]),
            *(f"{count:,}" for count in counts[:, k].tolist()),
            f"{totals[k] / samples:.2%}",
        )
        for k in order
    )
    return TextTable(title, ("class", *PARTS, "share"), lines)


def _form(found: ReadModality) -> tuple[str, ...]:
    modality, data = found.modality, found.modality.data
    shape = "x".join(map(str, data.shape[1:]))
    values = DASH if found.low is None else f"{shown(found.low)} to {shown(found.high)}"
    return (
        modality.name,
        modality.type,
        _backbone(found) or DASH,
        f"{shape} {data.dtype}".strip(),
        f"{values} words" if modality.type == "text" else values,
    )


def _backbone(found: ReadModality) -> str | None:
    backbone = found.modality.backbone
    if backbone is None or isinstance(backbone, str):
        return backbone
    return str(getattr(backbone, "__qualname__", type(backbone).__name__))
