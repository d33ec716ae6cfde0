"""Rows of a modality on their way into a network: checked, cast, sampled.

Legend: n rows, axes the shape of one row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.task import ROW_AXES, Array, Modality, ModalityType

_SAMPLED_NUMBERS = 2_000_000
_SAMPLED_ROWS = (16, 4096)


class RowForm(NamedTuple):
    """What rows of one type are: numbers of axes, numpy's kinds of numbers, in words.

    Of two numbers of axes the larger one is with colour. A network takes rows of dtype ``kept``
    as they are, and others as float32.
    """

    ranks: tuple[int, ...]
    kept: str = "float32"
    kinds: str = "buif"
    words: str = "numbers"


ROW_FORMS: dict[ModalityType, RowForm] = {
    "image": RowForm((2, 3), "uint8"),
    "clip": RowForm((3, 4), "uint8"),
    "waveform": RowForm((1,), "int16"),
    "sequence": RowForm((2,)),
    "vector": RowForm((1,)),
    "text": RowForm((0,), "int64", "UT", "strings"),
    "tokens": RowForm((1,), "int64", "iu", "integers"),
}


def check_rows(modality: Modality, rows: Array) -> str:
    """Return the dtype in which a network takes the train ``rows`` (n, *axes) of ``modality``.

    Raises UserError when they are none, of the wrong shape or not of the modality's kind.
    """
    form, where = ROW_FORMS[modality.type], f"modality {modality.name}"
    axes = rows.shape[1:]
    if len(rows) == 0:
        raise UserError(f"{where}: received no rows to train on, expected one")
    if len(axes) not in form.ranks or 0 in axes:
        raise UserError(
            f"{where}: received rows of shape {axes}, expected {ROW_AXES[modality.type]} for type "
            f"{modality.type!r}"
        )
    if rows.dtype.kind not in form.kinds:
        raise UserError(
            f"{where}: received an array of {rows.dtype}, expected {form.words} for type "
            f"{modality.type!r}"
        )
    if has_colour(modality.type, axes) and axes[-1] != 3:
        raise UserError(
            f"{where}: received {axes[-1]} values on the last axis of {axes}, expected 3 colours "
            "or no colour axis"
        )
    return form.kept if form.kept == "int64" or rows.dtype == np.dtype(form.kept) else "float32"


def has_colour(type_: ModalityType, axes: tuple[int, ...]) -> bool:
    """Tell whether the last of a row's ``axes`` is colour."""
    ranks = ROW_FORMS[type_].ranks
    return len(ranks) == 2 and len(axes) == ranks[1]


def require_finite(modality: Modality, rows: Array) -> None:
    """Raise UserError when a number in ``rows`` is NaN or does not fit float32."""
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise UserError(
            f"modality {modality.name}: received NaN, infinity or a number beyond float32 in the "
            "train rows, expected finite numbers: replace or drop them first"
        )


def cast_rows(rows: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Return ``rows`` (n, *shape) as a contiguous array of ``dtype``.

    Raises UserError when the rows have another shape, or floats where integers are expected.
    """
    rows = np.asarray(rows)
    if rows.shape[1:] != shape or rows.ndim == 0:
        raise UserError(f"received rows of shape {rows.shape[1:]}, expected {shape}")
    of_dtype = rows.dtype.kind in "iu" if dtype == "int64" else rows.dtype == np.dtype(dtype)
    if dtype != "float32" and not of_dtype:
        raise UserError(f"received rows of dtype {rows.dtype}, expected {dtype}")
    # A double beyond float32 becomes infinity, which the caller's check of the data reports.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(rows, dtype=dtype)


def sample_rows(rows: Array) -> Array:
    """Return evenly spaced rows, about two million numbers: enough for means and ranges."""
    return np.asarray(rows[sampled_positions(len(rows), rows[0].size)])


def sampled_positions(count: int, size: int) -> Array:
    """Return which of ``count`` rows of ``size`` numbers ``sample_rows`` takes, int64."""
    low, high = _SAMPLED_ROWS
    wanted = min(count, high, max(low, _SAMPLED_NUMBERS // max(1, size)))
    return np.linspace(0, count - 1, wanted).astype(np.int64)
