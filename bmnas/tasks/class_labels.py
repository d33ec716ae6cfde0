"""Labels of a user's table as people write them: 1 to K, -1 and +1, 01, 1.0, true, with blanks."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from bmnas_serve.sources import is_missing

from bmnas.machine.errors import UserError, few
from bmnas.tasks.columns import Columns
from bmnas.tasks.kinds import Array

#: Of a number as it is printed; others, such as 01 and +1, are names.
_PLAIN = re.compile(r"0|-?[1-9][0-9]{0,17}")


def read_labels(columns: Columns, name: str) -> tuple[Array, Array, tuple[str, ...]]:
    """Return the labels (n,) of one class a sample, which of them are missing, and remarks.

    Blanks around a label are no part of it, and ``nan`` is none. Fields of a table are strings, and
    whole numbers where all of them are written plainly.
    """
    labels = columns.get(name, text=True)
    if labels.dtype.kind == "f" and labels.ndim == 1:
        return labels, np.isnan(labels), ()
    if labels.dtype.kind not in "UT" or labels.ndim != 1:
        return labels, np.zeros(labels.shape[:1], np.bool_), ()
    tidy = np.char.strip(labels)
    missing = np.array([names_nothing(text) for text in tidy.tolist()], np.bool_)
    remarks: tuple[str, ...] = ()
    if len(blank := np.flatnonzero((tidy != labels) & ~missing)):
        of = sorted({str(labels[row]) for row in blank.tolist()})
        remarks = (
            f"labels: blanks around {few(map(repr, of))} are left out, in {len(blank)} rows: "
            f"{few(blank.tolist(), 8)}",
        )
    if alike := alike_but_capitals(np.unique(tidy[~missing]).tolist()):
        told = few(map(repr, alike), 8)
        remarks += (f"labels: classes that differ by capitals only: {told}: are they one?",)
    if all(map(_PLAIN.fullmatch, tidy[~missing].tolist())) and not missing.all():
        numbers = np.zeros(len(tidy), np.int64)
        numbers[~missing] = tidy[~missing].astype(np.int64)
        return numbers, missing, remarks
    return tidy, missing, remarks


def alike_but_capitals(names: Iterable[str]) -> list[str]:
    """Return those of the different ``names`` that another equals but for capital letters."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.casefold(), []).append(name)
    return [name for same in found.values() if len(same) > 1 for name in sorted(same)]


def names_nothing(text: str) -> bool:
    """Tell whether a field, blanks around it taken off, is no name of a class."""
    return text.lower() in ("", "nan")


def without_number(labels: Array) -> Array:
    """Return which rows of numbers or strings, (n,) or (n, K), lack one, (n,) bool."""
    if labels.dtype.kind in "UT":
        lacking = is_missing(labels.ravel())
    else:
        lacking = np.isnan(labels) if labels.dtype.kind == "f" else np.zeros(labels.shape, np.bool_)
    return np.asarray(lacking.reshape(len(labels), -1).any(1))


def missing_labels(rows: Array, samples: int) -> UserError:
    """Return the error for samples, numbered ``rows`` (n,), that have no label."""
    return UserError(
        f"{len(rows)} of {samples} rows have no label: rows {few(rows.tolist(), 20)}: give them "
        "one, or write unlabelled = 'skip' to leave them out"
    )
