"""``digits``, the task that needs no file: two halves of scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np

from bmnas.tasks.task import Modality, Task, draw_parts

SPLIT_SEED = 20240520
FRACTIONS = (0.6, 0.2, 0.2)


def load_digits() -> Task:
    """Return the 1,797 digits as the image modalities ``left`` and ``right``, (8, 4) uint8.

    Pixels are 0 to 16, as scikit-learn ships them. The split is stratified over the ten
    classes, 60/20/20 with the fixed seed 20240520: 1,078 train, 360 validation and 359 test
    samples. Neither half is enough to tell all digits apart, so fusion has something to add.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (its test set),
    UCI Machine Learning Repository, CC BY 4.0.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.int64)
    return Task(
        name="digits",
        kind="multiclass",
        modalities=(
            Modality("left", "image", np.ascontiguousarray(images[:, :, :4])),
            Modality("right", "image", np.ascontiguousarray(images[:, :, 4:])),
        ),
        labels=labels,
        part=draw_parts(labels, FRACTIONS, SPLIT_SEED),
        class_names=tuple(str(k) for k in range(10)),
        preset="digits",
        licence="CC BY 4.0",
    )
