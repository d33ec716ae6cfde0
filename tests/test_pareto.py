from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pareto import hypervolume


def test_hypervolumes_by_hand() -> None:
    assert hypervolume(np.array([[0.5, 0.5, 0.5]]), 1.0) == pytest.approx(0.125)
    two = np.array([[0.0, 0.5], [0.5, 0.0]])
    assert hypervolume(two, 1.0) == pytest.approx(0.75)
    assert hypervolume(np.array([[2.0, 0.0]]), 1.0) == 0


def test_a_hypervolume_is_the_share_of_chances_that_are_dominated() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(size=(8, 3))
    drawn = generator.uniform(size=(20_000, 3))
    dominated = (points[None] <= drawn[:, None]).all(-1).any(-1).mean()
    assert hypervolume(points, 1.0) == pytest.approx(dominated, abs=0.01)
