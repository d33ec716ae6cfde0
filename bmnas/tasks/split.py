"""Train, validation and test parts drawn with a fixed seed."""

from __future__ import annotations

import numpy as np

from bmnas.tasks.kinds import Array


def stratified_parts(labels: Array, fractions: tuple[float, float, float], seed: int) -> Array:
    """Draw the part of each sample so that every class has the given fractions.

    ``labels`` (samples,) may be of any kind that sorts; the result is (samples,) uint8 with
    0 train, 1 validation, 2 test. Each class is shuffled on its own and cut at the rounded
    fractions; at least one sample of every class goes to train. The generator is the frozen
    ``RandomState``, so a seed means the same split in every version of NumPy.
    """
    generator = np.random.RandomState(seed)
    part = np.empty(len(labels), dtype=np.uint8)
    for label in np.unique(labels):
        part[generator.permutation(np.flatnonzero(labels == label))] = _cut(
            int(np.sum(labels == label)), fractions
        )
    return part


def random_parts(samples: int, fractions: tuple[float, float, float], seed: int) -> Array:
    """Draw the part of each of ``samples`` samples, whatever its labels: (samples,) uint8."""
    part = np.empty(samples, dtype=np.uint8)
    part[np.random.RandomState(seed).permutation(samples)] = _cut(samples, fractions)
    return part


def _cut(count: int, fractions: tuple[float, float, float]) -> Array:
    train = max(round(count * fractions[0]), min(count, 1))
    validation = max(round(count * (fractions[0] + fractions[1])), train) - train
    return np.repeat(np.arange(3, dtype=np.uint8), [train, validation, count - train - validation])
