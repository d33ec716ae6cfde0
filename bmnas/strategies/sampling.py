"""Which candidates a step of MFAS trains: drawn by their scores, more evenly while it is hot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

_HOT, _COLD, _DECAY = 10.0, 0.2, 4.0
_SMALLEST = 1e-12  # of a score: one of zero comes last, and can still be drawn

_Candidate = TypeVar("_Candidate")


def temperatures(sweeps: int, levels: int) -> list[float]:
    """Return the temperature T of every step, level by level of every sweep.

    The first is 10; after a step it is (10 - 0.2) exp(-(i + 1)² / 4²) + 0.2 with i = sweep * sweeps
    + level, both from 0. So it is in the authors' program, where each of three sweeps adds three to
    i for its four levels: 10, 9.41, 7.83, 5.78, 3.81, 3.81, 2.25, 1.23, 0.66, 0.66, 0.38, 0.26.
    """
    counts = [sweep * sweeps + level for sweep in range(sweeps) for level in range(levels)]
    cooled = [(_HOT - _COLD) * math.exp(-((i + 1) ** 2) / _DECAY**2) + _COLD for i in counts]
    return [_HOT, *cooled[:-1]]


def probabilities(scores: Sequence[float], temperature: float) -> np.ndarray:
    """Return p proportional to (score / sum of scores)^(1 / T), which adds up to 1."""
    # In logarithms: 1 / T = 5 of small scores would leave nothing in floating point.
    logs = np.log(np.maximum(np.asarray(scores, dtype=np.float64), _SMALLEST)) / temperature
    powered = np.exp(logs - logs.max())
    p: np.ndarray = powered / powered.sum()
    return p


def draw(
    candidates: Sequence[_Candidate],
    scores: Sequence[float],
    count: int,
    temperature: float,
    generator: np.random.Generator,
) -> list[_Candidate]:
    """Return ``count`` of ``candidates``, or all there are, drawn one after the other.

    A draw takes one of those left by their ``probabilities``.
    """
    p = probabilities(scores, temperature)
    count = min(count, len(candidates))
    chosen = generator.choice(len(candidates), count, replace=False, p=p)
    return [candidates[number] for number in chosen]
