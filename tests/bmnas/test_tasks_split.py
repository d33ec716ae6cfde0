from __future__ import annotations

import numpy as np
import pytest

from bmnas.tasks.task import draw_parts


def test_every_class_has_the_fractions() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    part = draw_parts(labels, (0.6, 0.2, 0.2), seed=0)
    for label, count in ((0, 100), (1, 50), (2, 10)):
        counts = np.bincount(part[labels == label], minlength=3)
        assert counts.tolist() == [round(0.6 * count), round(0.2 * count), round(0.2 * count)]


def test_a_seed_is_a_split() -> None:
    labels = np.arange(60) % 3
    a, b, c = (draw_parts(labels, (0.5, 0.25, 0.25), seed) for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_split_does_not_depend_on_what_classes_are_called() -> None:
    labels = np.arange(60) % 3
    names = np.array(["a", "b", "c"])[labels]
    fractions = (0.5, 0.25, 0.25)
    assert np.array_equal(draw_parts(labels, fractions, 0), draw_parts(names, fractions, 0))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_rare_class_is_in_train(count: int) -> None:
    labels = np.repeat([0, 1], [30, count])
    part = draw_parts(labels, (0.1, 0.45, 0.45), seed=0)
    assert np.count_nonzero(part[labels == 1] == 0) >= 1


def test_nan_is_a_class_of_its_own() -> None:
    labels = np.repeat([1.0, np.nan], 20)
    numbers = np.repeat([1.0, 2.0], 20)
    fractions = (0.6, 0.2, 0.2)
    assert np.array_equal(draw_parts(labels, fractions, 0), draw_parts(numbers, fractions, 0))


@pytest.mark.parametrize("samples", [0, 1, 7, 1000])
def test_random_parts_cut_all_samples(samples: int) -> None:
    part = draw_parts(np.zeros(samples), (0.6, 0.2, 0.2), seed=3)
    counts = np.bincount(part, minlength=3)
    assert part.shape == (samples,)
    assert np.all(np.abs(counts - np.array([0.6, 0.2, 0.2]) * samples) <= 1)
