"""The elements of a tensor, as JSON lists or as bytes, from and to numpy arrays."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.checks import wrong
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.errors import FormatError, shorten
from bmnas_serve.strict_json import alike
from bmnas_serve.turns import take_turns

#: What a request holds of a tensor: a list, flat or nested, or the bytes. Any long list of numbers
#: alone may be an array. Of a message it is a sequence that makes its elements when it is read.
_List = list[Any] | NDArray[Any]
Data = _List | bytes | memoryview | Sequence[Any]

#: How many elements are made in one step, between which other threads go on.
_STEP = 16_384


def to_array(data: Data, shape: Sequence[int], dtype: str, place: str) -> NDArray[Any]:
    """Return ``data`` as an array of ``shape`` and ``dtype``, numpy's name; all of it finite.

    Raises FormatError, which starts with ``place``, when there are more or fewer elements than the
    shape has, and for one that the dtype cannot hold: numpy alone would take null for NaN and
    true for 1.
    """
    if isinstance(data, bytes | memoryview):
        return _from_bytes(data, shape, np.dtype(dtype), place)
    found = np.dtype(dtype)
    if not isinstance(data, list | np.ndarray):
        _check_count(len(data), shape, place)
        data = _made(data, found)
    rows = _rows(data, tuple(shape), place)
    some = max(1, _STEP // max(1, len(rows[0])))
    pieces, start = [], 0
    for i in range(0, len(rows), some):
        if i:
            take_turns()
        elements = _joined(rows[i : i + some])
        pieces.append(_from_list(elements, found, place, start))
        start += len(elements)
    return np.concatenate(pieces).reshape(shape)


def to_bytes(array: NDArray[Any]) -> bytes:
    """Return the elements as the protocol's bytes: row-major, little-endian."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def texts_to_bytes(texts: Sequence[str]) -> bytes:
    """Return the elements of a BYTES tensor: each with its length before it."""
    encoded = (text.encode() for text in texts)
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def _from_bytes(
    data: bytes | memoryview, shape: Sequence[int], dtype: np.dtype[Any], place: str
) -> NDArray[Any]:
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise FormatError(
            f"{place}: received {_count(len(data), 'byte')}, expected {expected:,} for"
            f" {PROTOCOL[dtype.name]} of the shape {list(shape)}"
        )
    received = np.frombuffer(data, dtype.newbyteorder("<") if dtype.kind != "b" else np.uint8)
    if dtype.kind == "b" and received.max() > 1:
        position = int(np.argmax(received > 1))
        raise wrong(f"{place}: element {position}", int(received[position]), "0 or 1 for BOOL")
    if dtype.kind == "f" and not (finite := np.isfinite(received)).all():
        position = int(np.argmin(finite))
        value = float(received[position])
        raise FormatError(
            f"{place}: element {position}: received {value}, expected a finite number"
        )
    array = received.astype(dtype, copy=False).reshape(shape)
    # A tensor can begin anywhere in a body, and onnxruntime reads whole vectors.
    return array if array.flags.aligned else array.copy()


def _made(elements: Sequence[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the elements as the widest type of the kind of ``dtype``."""
    widest = {"b": np.bool_, "i": np.int64, "u": np.uint64, "f": np.float64}[dtype.kind]
    pieces: list[NDArray[Any]] = []
    for i in range(0, len(elements), _STEP):
        if i:
            take_turns()
        pieces.append(np.array(elements[i : i + _STEP], widest))
    return np.concatenate(pieces)


def _rows(data: _List, shape: tuple[int, ...], place: str) -> list[_List]:
    """Return short lists of the numbers in a list that is flat or nested like ``shape``."""
    if len(shape) > 1 and len(data) and isinstance(data[0], list | np.ndarray):
        return _nested_rows(data, shape, place)
    _check_count(len(data), shape, place)
    return [data[i : i + _STEP] for i in range(0, max(1, len(data)), _STEP)]


def _check_count(received: int, shape: Sequence[int], place: str) -> None:
    count = math.prod(shape)
    if received != count:
        raise FormatError(
            f"{place}: received {_count(received, 'element')}, expected {count:,} for the shape"
            f" {list(shape)}"
        )


def _nested_rows(data: _List, shape: tuple[int, ...], place: str) -> list[_List]:
    rows: list[Any] = [data]
    for axis, length in enumerate(shape):
        for row in rows:
            if not isinstance(row, list | np.ndarray) or len(row) != length:
                is_list = isinstance(row, list | np.ndarray)
                found = _count(len(row), "item") if is_list else shorten(row)
                raise FormatError(
                    f"{place}: received {found} on axis {axis}, expected a list of {length:,}"
                    f" for the shape {list(shape)}"
                )
        if axis < len(shape) - 1:
            rows = list(chain.from_iterable(map(_as_list, rows)))
    return rows


def _joined(rows: list[_List]) -> _List:
    """Return the elements of a few rows: as an array where all of them are arrays."""
    arrays = [row for row in rows if isinstance(row, np.ndarray)]
    if len(arrays) == len(rows) and all(alike(arrays[0], array) for array in arrays):
        return np.concatenate(arrays)
    return list(chain.from_iterable(map(_as_list, rows)))


def _as_list(row: _List) -> list[Any]:
    return row.tolist() if isinstance(row, np.ndarray) else row


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _from_list(elements: _List, dtype: np.dtype[Any], place: str, start: int) -> NDArray[Any]:
    """Return elements as ``dtype``; the first is element ``start`` of the tensor."""
    if isinstance(elements, np.ndarray):
        return _from_numbers(elements, dtype, place, start)
    if dtype.kind == "b":
        _check_types(elements, {bool}, place, start, _expected(dtype))
        return np.array(elements, dtype)
    if dtype.kind in "iu":
        _check_types(elements, {int}, place, start, _expected(dtype))
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        for value in (min(elements), max(elements)):
            if not low <= value <= high:
                raise _out_of_range(place, value, dtype, f"{low} to {high}")
        return np.array(elements, dtype)
    _check_types(elements, {int, float}, place, start, _expected(dtype))
    return _floats(elements, dtype, place)


def _from_numbers(
    numbers: NDArray[Any], dtype: np.dtype[Any], place: str, start: int
) -> NDArray[Any]:
    """Return an array of a type that ``dtype`` may not hold in it, checked as elements are."""
    if numbers.dtype == dtype and dtype.kind != "f":
        return numbers
    kind = numbers.dtype.kind
    if dtype.kind == "f" and kind != "b":
        return _floats(numbers, dtype, place)
    if dtype.kind == "b" or kind in "bf":
        # Where integers and others are mixed, the first that is no integer is to be named.
        position = int(np.argmax(numbers != np.trunc(numbers))) if kind == "f" else 0
        value = numbers[position].item()
        raise wrong(f"{place}: element {start + position}", value, _expected(dtype))
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    for value in (int(numbers.min()), int(numbers.max())):
        if not low <= value <= high:
            raise _out_of_range(place, value, dtype, f"{low} to {high}")
    return numbers.astype(dtype)


def _expected(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "b":
        return "true or false"
    return f"{'numbers' if dtype.kind == 'f' else 'integers'} of {PROTOCOL[dtype.name]}"


def _floats(elements: list[Any] | NDArray[Any], dtype: np.dtype[Any], place: str) -> NDArray[Any]:
    largest = float(np.finfo(dtype).max)
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(elements, np.float64).astype(dtype)
    except OverflowError as error:  # an integer of hundreds of digits is a JSON number too
        value = max(elements, key=abs)
        raise _out_of_range(place, value, dtype, f"{-largest:g} to {largest:g}") from error
    finite = np.isfinite(array)
    if not finite.all():
        value = np.asarray(elements)[int(np.argmin(finite))].item()
        raise _out_of_range(place, value, dtype, f"{-largest:g} to {largest:g}")
    return array


def _check_types(
    elements: list[Any], allowed: set[type], place: str, start: int, expected: str
) -> None:
    if not set(map(type, elements)) <= allowed:
        position = next(i for i, value in enumerate(elements) if type(value) not in allowed)
        raise wrong(f"{place}: element {start + position}", elements[position], expected)


def _out_of_range(place: str, value: Any, dtype: np.dtype[Any], span: str) -> FormatError:
    return FormatError(
        f"{place}: received {shorten(value)}, out of range for {PROTOCOL[dtype.name]}: {span}"
    )
