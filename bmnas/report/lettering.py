"""Texts of a drawing: how wide they are, how long names are cut and captions are wrapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: Width in inches of a text at a size in points.
Measure = Callable[[str, float], float]

NAME_LIMIT = 28


def shortened(name: str) -> str:
    """Return ``name``, its middle cut out where it is longer than ``NAME_LIMIT`` characters."""
    return name if len(name) <= NAME_LIMIT else f"{name[:12]}…{name[13 - NAME_LIMIT :]}"


def wrapped(facts: Sequence[str], width: float, size: float, measure: Measure) -> list[str]:
    """Return lines of ``facts``, none broken, each line as wide as fits into ``width`` inches."""
    lines: list[str] = []
    for fact in facts:
        joined = f"{lines[-1]}  ·  {fact}" if lines else fact
        if lines and measure(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(fact)
    return lines
