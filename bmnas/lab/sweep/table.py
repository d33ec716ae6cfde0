"""The trials of a sweep as a table, the best on validation first."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bmnas.lab.sweep.folder import TrialRecord
from bmnas.report.tables import DASH, TextTable


def sweep_tables(records: Sequence[TrialRecord]) -> list[TextTable]:
    """Return a table of all trials: what was varied, how it ended, scores and cost."""
    keys = list(dict.fromkeys(key for record in records for key in record.settings))
    ordered = sorted(records, key=lambda r: -1.0 if r.validation is None else r.validation)
    rows = tuple(_row(record, keys) for record in reversed(ordered))
    metrics = dict.fromkeys(r.metric.replace("_", " ") for r in records if r.metric)
    heads = ("trial", *keys, "state", "validation", "test", "search s", "attempts")
    words = 2 + len(keys)
    return [TextTable(", ".join(["Sweep", *metrics]), heads, rows, words=words)]


def _row(record: TrialRecord, keys: Sequence[str]) -> tuple[str, ...]:
    varied = (_text(record.settings[key]) if key in record.settings else DASH for key in keys)
    return (
        record.name,
        *varied,
        record.state,
        DASH if record.validation is None else f"{record.validation:.4f}",
        DASH if record.test is None else f"{record.test:.4f}",
        DASH if record.seconds is None else f"{record.seconds:.1f}",
        str(record.attempts),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
