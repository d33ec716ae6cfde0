"""Checks of plain data from a file: each error names the place, the find and the need.

Standard library only, as everything that reads a genotype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from bmnas.machine.errors import UserError
from bmnas.machine.schema import SchemaError, read

T = TypeVar("T")

_FEATURE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+")


class GenotypeError(UserError):
    """A genotype is malformed; the message names the file, the place, the find, the need."""


def by_modality(features: Sequence[str]) -> dict[str, list[str]]:
    """Return the features of each modality, both in their order."""
    found: dict[str, list[str]] = {}
    for name in features:
        found.setdefault(name.partition(".")[0], []).append(name)
    return found


def check_features(features: Sequence[str]) -> None:
    """Raise GenotypeError unless there are two features or more, all with good names."""
    if len(features) < 2:
        raise wrong("features", list(features), "at least two features")
    for f, name in enumerate(features):
        if not _FEATURE.fullmatch(name):
            raise wrong(f"features[{f}]", name, "a name such as 'image.1'")
    if len(set(features)) < len(features):
        raise wrong("features", list(features), "names that differ")


def parsed(kind: type[T], data: Any, file_format: str) -> T:
    """Return the plain ``data`` of a file as the dataclass ``kind``, see ``bmnas.machine.schema``.

    Raises GenotypeError, which tells every problem with its place in the file.
    """
    if not isinstance(data, dict):
        raise wrong("", data, "an object")
    if "format" not in data:
        raise GenotypeError("expected the key 'format', which is missing")
    if data["format"] != file_format:
        raise wrong("format", data["format"], repr(file_format))
    try:
        value = read(kind, {k: v for k, v in data.items() if k != "format"})
    except SchemaError as error:
        raise GenotypeError(str(error)) from error
    _check_finite(data.get("provenance", {}))
    return value


def _check_finite(provenance: Any) -> None:
    stack: list[Any] = [provenance]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, float) and not math.isfinite(value):
            # JSON has no NaN, but 1e999 is valid JSON and reads as infinity.
            raise wrong("provenance", value, "finite numbers")


def wrong(place: str, received: Any, expected: str) -> GenotypeError:
    """Return the error that names a place in the file, what was found and what was expected."""
    return GenotypeError(f"{_at(place)}received {_show(received)}, expected {expected}")


def _at(place: str) -> str:
    # The whole file has no place of its own: its name stands in front of the message.
    return f"{place}: " if place else ""


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
