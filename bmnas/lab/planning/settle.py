"""How long a unit of work takes, measured in a given time."""

from __future__ import annotations

from collections.abc import Callable


def settle(run: Callable[[int], float], least: int, most: int, budget: float) -> float:
    """Return the seconds of one unit of ``run``, which returns what some units took.

    The first run warms up and does not count, as what torch does once may take it seconds. Then
    the units grow until a run takes a good part of ``budget`` seconds, or there are ``most``.
    """
    units = min(least, most)
    run(units)
    while True:
        seconds = run(units)
        if units == most or seconds >= budget / 4:
            return seconds / units
        grown = int(units * budget / 2 / max(seconds, 1e-6))
        units = min(most, max(2 * units, min(grown, 16 * units)))
