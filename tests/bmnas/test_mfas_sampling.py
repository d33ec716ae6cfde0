from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from bmnas.strategies.mfas import draw, probabilities, temperatures


def test_the_temperatures_of_the_authors() -> None:
    found = [round(t, 2) for t in temperatures(3, 4)]
    assert found == [10, 9.41, 7.83, 5.78, 3.81, 3.81, 2.25, 1.23, 0.66, 0.66, 0.38, 0.26]
    assert temperatures(1, 1) == [10]
    # One sweep: i counts its levels; 9.8 exp(-1 / 16) + 0.2 after the first.
    assert temperatures(1, 2) == [10, pytest.approx(9.8 * math.exp(-1 / 16) + 0.2)]


def test_probabilities_by_hand() -> None:
    # 0.2, 0.3, 0.5 to the power 1 / 0.5, over 0.04 + 0.09 + 0.25.
    expected = [0.04 / 0.38, 0.09 / 0.38, 0.25 / 0.38]
    np.testing.assert_allclose(probabilities([0.4, 0.6, 1.0], 0.5), expected)
    np.testing.assert_allclose(probabilities([0.4, 0.6, 1.0], 1.0), [0.2, 0.3, 0.5])


def test_drawing_is_without_replacement() -> None:
    generator = np.random.default_rng(0)
    scores, temperature = [0.4, 0.6, 1.0], 0.5
    drawn = Counter(tuple(draw("abc", scores, 2, temperature, generator)) for _ in range(20000))
    p = dict(zip("abc", probabilities(scores, temperature), strict=True))
    for first in "abc":
        for second in set("abc") - {first}:
            expected = p[first] * p[second] / (1 - p[first])
            assert abs(drawn[first, second] / 20000 - expected) < 0.016  # 4.5 deviations
    assert sum(drawn.values()) == sum(drawn[a, b] for a in "abc" for b in "abc" if a != b)


def test_all_are_drawn_where_there_are_no_more() -> None:
    generator = np.random.default_rng(0)
    assert sorted(draw("abc", [0.1, 0.2, 0.3], 5, 1.0, generator)) == list("abc")


@pytest.mark.parametrize("temperature", [10.0, 0.2])
def test_scores_of_zero_come_last(temperature: float) -> None:
    generator = np.random.default_rng(0)
    scores = [0.0, 0.5, 0.0, 0.5]
    cold = [set(draw("abcd", scores, 2, 0.2, generator)) for _ in range(50)]
    assert all(drawn == {"b", "d"} for drawn in cold)
    assert sorted(draw("abcd", [0.0] * 4, 4, temperature, generator)) == list("abcd")
