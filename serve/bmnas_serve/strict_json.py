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
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the key {name!r} stands twice in one object")
        members[name] = value
    return members
