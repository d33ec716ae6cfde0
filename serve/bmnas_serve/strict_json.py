"""JSON that is read without mercy: no NaN, no repeated keys, no exception but ValueError."""

from __future__ import annotations

import json
from typing import Any


def parse_json(content: bytes) -> Any:
    """Read one JSON value from UTF-8 text; ValueError says in one line what is wrong."""
    if not content:
        raise ValueError("it is empty")
    try:
        return json.loads(
            content.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repetition
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} stands where a finite number is expected")


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return members
