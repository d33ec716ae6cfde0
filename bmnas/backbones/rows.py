"""Rows of numbers on their way into a network: checked, cast, sampled.

Legend: n rows, axes the shape of one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.task import ROW_AXES, Array, Modality

_SAMPLED_NUMBERS = 2_000_000
_SAMPLED_ROWS = (16, 4096)


def require_rows(modality: Modality, rows: Array, ranks: Sequence[int]) -> None:
    """Raise UserError unless ``rows`` (n, *axes) has n > 0 and one of ``ranks`` axes, none empty.

    Three axes of colour are checked by the families that know of colour.
    """
    if len(rows) == 0:
        raise UserError(f"modality {modality.name}: received no rows to train on, expected one")
    if rows.ndim - 1 not in ranks or 0 in rows.shape:
        raise UserError(
            f"modality {modality.name}: received rows of shape {rows.shape[1:]}, "
            f"expected {ROW_AXES[modality.type]} for type {modality.type!r}"
        )


def require_colour(modality: Modality, rows: Array, rank: int) -> None:
    """Raise UserError unless rows with ``rank`` axes, the last one being colour, have 3 colours."""
    if rows.ndim - 1 == rank and rows.shape[-1] != 3:
        raise UserError(
            f"modality {modality.name}: received {rows.shape[-1]} values on the last axis of "
            f"{rows.shape[1:]}, expected 3 colours or no colour axis"
        )


def require_finite(modality: Modality, rows: Array) -> None:
    """Raise UserError when a number in ``rows`` is NaN or does not fit float32."""
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise UserError(
            f"modality {modality.name}: received NaN, infinity or a number beyond float32 in the "
            "train rows, expected finite numbers: replace or drop them first"
        )


def network_dtype(modality: Modality, rows: Array, kept: str = "float32") -> str:
    """Return ``kept`` if the rows have that dtype, else float32; strings raise UserError."""
    if rows.dtype.kind not in "buif":
        raise UserError(
            f"modality {modality.name}: received an array of {rows.dtype}, expected numbers for "
            f"type {modality.type!r}"
        )
    return kept if rows.dtype == np.dtype(kept) else "float32"


def cast_rows(rows: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Return ``rows`` (n, *shape) as a contiguous array of ``dtype``.

    Raises UserError when the rows have another shape, or floats where integers are expected.
    """
    rows = np.asarray(rows)
    if rows.shape[1:] != shape or rows.ndim == 0:
        raise UserError(f"received rows of shape {rows.shape[1:]}, expected {shape}")
    if dtype != "float32" and rows.dtype != np.dtype(dtype):
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


def value_range(rows: Array) -> list[float]:
    """Return the smallest and the largest value of ``rows``."""
    return [float(rows.min()), float(rows.max())]
