"""What no other is better than in everything: fronts, and an order that leads to them (NSGA-II).

Values are to be small: a score goes in as its negative. Legend: n points, d values each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmnas.spaces.architecture import Architecture


@dataclass(frozen=True)
class Point:
    """A network that was trained: its score on validation, and what it is expected to cost.

    ``unimodal_logits`` says whether those are added to its own.
    """

    genotype: Architecture
    unimodal_logits: bool
    score: float
    latency_ms: float
    parameters: int

    @property
    def values(self) -> tuple[float, ...]:
        """What is to be small."""
        return -self.score, self.latency_ms, float(self.parameters)


def ranks(values: Sequence[Sequence[float]]) -> list[int]:
    """Return the front that each of the points is on: 0 where none dominates it.

    One dominates another if it is as good in everything and better in something; front 1 is what
    is left without front 0, and so on (Deb et al., IEEE TEC 2002).
    """
    points = np.asarray(values, dtype=np.float64)
    as_good = (points[:, None] <= points[None]).all(-1)
    better = (points[:, None] < points[None]).any(-1)
    dominates = np.asarray(as_good & better)
    found = np.full(len(points), -1)
    rank = 0
    while (left := found < 0).any():
        found[left & ~dominates[left].any(0)] = rank
        rank += 1
    return found.tolist()


def crowding(values: Sequence[Sequence[float]]) -> list[float]:
    """Return how far the neighbours of each point are from each other, summed over the axes.

    Each axis is scaled to its range; what is first or last on one has no end.
    """
    points = np.asarray(values, dtype=np.float64)
    total = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            total[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
            total[[order[0], order[-1]]] = np.inf
    return total.tolist()


def ordered(values: Sequence[Sequence[float]]) -> list[int]:
    """Return the numbers of the points, front by front, in each the loneliest first."""
    fronts = ranks(values)
    found: list[int] = []
    for rank in range(max(fronts, default=-1) + 1):
        own = [n for n, front in enumerate(fronts) if front == rank]
        apart = crowding([values[n] for n in own])
        # sorted() keeps the order among equals.
        found += [own[n] for n in sorted(range(len(own)), key=lambda n: -apart[n])]
    return found


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other dominates, the fastest first; of equal ones the first."""
    different = list({point.values: point for point in reversed(points)}.values())
    pairs = zip(different, ranks([point.values for point in different]), strict=True)
    return tuple(sorted((p for p, rank in pairs if rank == 0), key=lambda p: p.values[1:]))
