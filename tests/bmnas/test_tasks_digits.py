from __future__ import annotations

import numpy as np

from bmnas.tasks import check_task, check_test, load_task


def test_halves_put_together_are_the_digits() -> None:
    from sklearn import datasets

    task = load_task("digits")
    check_task(task)
    check_test(task)
    assert [(m.name, m.type, m.data.dtype, m.data.shape) for m in task.modalities] == [
        ("left", "image", np.uint8, (1797, 8, 4)),
        ("right", "image", np.uint8, (1797, 8, 4)),
    ]
    whole = np.concatenate([modality.data for modality in task.modalities], axis=2)
    assert np.array_equal(whole, datasets.load_digits().images)
    assert np.array_equal(task.labels, datasets.load_digits().target)


def test_the_split_is_the_documented_one() -> None:
    task = load_task("digits")
    counts = tuple(len(task.samples(part)) for part in ("train", "validation", "test"))
    assert counts == (1078, 360, 359)
    for part in range(3):
        share = np.bincount(task.labels[task.part == part]) / np.bincount(task.labels)
        assert np.all(np.abs(share - (0.6, 0.2, 0.2)[part]) < 0.01)
    # A changed split would make published scores incomparable.
    assert np.flatnonzero(task.part == 2)[:8].tolist() == [0, 19, 20, 30, 33, 40, 50, 58]
