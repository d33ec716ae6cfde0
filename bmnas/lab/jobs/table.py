"""Runs as a table: what was varied, how each ended, scores and cost."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bmnas.lab.jobs.folder import JobRecord
from bmnas.report.rows import DASH
from bmnas.report.tables import TextTable


def jobs_table(records: Sequence[JobRecord], title: str) -> TextTable:
    """Return a table with a row for each of ``records``, in their order."""
    keys = list(dict.fromkeys(key for record in records for key in record.settings))
    rows = tuple(_row(record, keys) for record in records)
    metrics = dict.fromkeys(r.metric.replace("_", " ") for r in records if r.metric)
    heads = ("run", *keys, "state", "validation", "test", "search s", "attempts")
    return TextTable(", ".join([title, *metrics]), heads, rows, words=2 + len(keys))


def best_first(records: Sequence[JobRecord]) -> list[JobRecord]:
    """Return the records with the best validation score first, those without one last."""
    return sorted(records, key=lambda r: 1.0 if r.validation is None else -r.validation)


def _row(record: JobRecord, keys: Sequence[str]) -> tuple[str, ...]:
    varied = (_text(record.settings[key]) if key in record.settings else DASH for key in keys)
    return (
        record.name,
        *varied,
        record.state,
        _number(record.validation, ".4f"),
        _number(record.test, ".4f"),
        _number(record.seconds, ".1f"),
        str(record.attempts),
    )


def _number(value: float | None, spec: str) -> str:
    return DASH if value is None else format(value, spec)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
