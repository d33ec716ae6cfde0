"""Data from outside: checked, and refused in one line that names the place.

A check takes a value and its place, and returns the value as it is used; FormatError says what was
received and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bmnas_serve.errors import FormatError, shorten

Check = Callable[[Any, str], Any]


def wrong(place: str, received: Any, expected: str) -> FormatError:
    """Return the error that says what was received at ``place``, and what was expected."""
    return FormatError(f"{place}: received {shorten(received)}, expected {expected}")


def table(
    data: Any, place: str, required: Mapping[str, Check], optional: Mapping[str, Check]
) -> dict[str, Any]:
    """Return the checked members of the JSON object ``data``.

    ``place`` is empty for a whole document: its members are named without it.
    """
    where = place or "the document"
    if not isinstance(data, dict):
        raise wrong(where, data, "a JSON object")
    checks = {**required, **optional}
    for key in data:
        if key not in checks:
            raise FormatError(
                f"{where}: has the unknown field {shorten(key)}, expected {', '.join(checks)}"
            )
    members = {
        key: check(data[key], f"{place}.{key}" if place else key)
        for key, check in checks.items()
        if key in data
    }
    missing = [key for key in required if key not in data]
    if missing:
        raise FormatError(f"{where}: lacks {', '.join(map(repr, missing))}")
    return members


def items(data: Any, place: str) -> Sequence[Any]:
    """Accept a list, or the tuple that stands for one before it is written."""
    if not isinstance(data, list | tuple):
        raise wrong(place, data, "a list")
    return data


def each(check: Check) -> Check:
    """Return the check of a list by that of its items; the list becomes a tuple."""
    return lambda data, place: tuple(
        check(item, f"{place}[{i}]") for i, item in enumerate(items(data, place))
    )


def text(value: Any, place: str) -> str:
    """Accept a string."""
    if not isinstance(value, str):
        raise wrong(place, value, "a string")
    return value


def nonempty(value: Any, place: str) -> str:
    """Accept a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise wrong(place, value, "a string that is not empty")
    return value


def boolean(value: Any, place: str) -> bool:
    """Accept true or false."""
    if type(value) is not bool:
        raise wrong(place, value, "true or false")
    return value


def finite(value: Any, place: str) -> float:
    """Accept a number that is neither NaN nor infinite, nor becomes so as a float."""
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise wrong(place, value, "a finite number")
    return float(value)


def one_of(choices: Iterable[str]) -> Check:
    """Return the check that accepts ``choices``."""
    known = list(choices)

    def check(value: Any, place: str) -> Any:
        if value not in known:
            raise wrong(place, value, f"one of {', '.join(known)}")
        return value

    return check


def plain_object(value: Any, place: str) -> Mapping[str, Any]:
    """Accept an object of any members that JSON can hold."""
    if not isinstance(value, dict):
        raise wrong(place, value, "a JSON object")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{place}: not plain JSON data: {error}") from error
    return value


def nullable(check: Check) -> Check:
    """Return ``check`` that also accepts null."""
    return lambda value, place: None if value is None else check(value, place)
