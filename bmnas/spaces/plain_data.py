"""Checks of plain data from a file: each error names the place, the find and the need.

Standard library only, as everything that reads a genotype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from bmnas.machine.errors import UserError

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


def strings(data: Any, place: str) -> list[str]:
    """Return ``data`` if it is a list of texts; raises GenotypeError."""
    names = list_of(data, place)
    for number, name in enumerate(names):
        if not isinstance(name, str):
            raise wrong(f"{place}[{number}]", name, "a name")
    return names


def list_of(data: Any, place: str) -> list[Any]:
    """Return ``data`` if it is a list; raises GenotypeError."""
    if not isinstance(data, list):
        raise wrong(place, data, "a list")
    return data


def object_of(
    data: Any, place: str, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """Return ``data`` if it is an object with just these keys; raises GenotypeError."""
    if not isinstance(data, dict):
        raise wrong(place, data, "an object")
    missing = [key for key in required if key not in data]
    if missing:
        raise GenotypeError(f"{_at(place)}expected {missing[0]!r}, which is missing")
    unknown = [key for key in data if key not in (*required, *optional)]
    if unknown:
        raise wrong(place, unknown[0], f"only {', '.join((*required, *optional))}")
    return data


def provenance_of(data: Any) -> dict[str, Any]:
    """Return ``data`` if it is an object of finite numbers; raises GenotypeError."""
    if not isinstance(data, dict):
        raise wrong("provenance", data, "an object")
    stack: list[Any] = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, float) and not math.isfinite(value):
            # JSON has no NaN, but 1e999 is valid JSON and reads as infinity.
            raise wrong("provenance", value, "finite numbers")
    return data


def wrong(place: str, received: Any, expected: str) -> GenotypeError:
    """Return the error that names a place in the file, what was found and what was expected."""
    return GenotypeError(f"{_at(place)}received {_show(received)}, expected {expected}")


def _at(place: str) -> str:
    # The whole file has no place of its own: its name stands in front of the message.
    return f"{place}: " if place else ""


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
