"""A task of a few dozen questions about images, for networks that read tokens."""

from __future__ import annotations

import numpy as np

from bmnas.tasks import Modality, Task

_COLOURS = ("red", "green", "blue")


def tiny_questions(samples: int = 96, backbone: str | None = "embedding") -> Task:
    """Is the image of the colour that is asked for? Questions differ in length."""
    draw = np.random.default_rng(0)
    shown, asked = draw.integers(0, 3, (2, samples))
    asked = np.where(draw.random(samples) < 0.5, shown, asked)
    images = draw.integers(0, 60, (samples, 16, 16, 3), dtype=np.uint8)
    images[np.arange(samples), 4:12, 4:12, shown] = 220
    texts = [
        f"is it {_COLOURS[colour]}{' or not so' * long}"
        for colour, long in zip(asked, draw.integers(0, 3, samples), strict=True)
    ]
    return Task(
        name="questions",
        kind="multiclass",
        modalities=(
            Modality("image", "image", images),
            Modality("question", "text", np.array(texts), backbone=backbone),
        ),
        labels=(shown == asked).astype(np.int64),
        part=np.arange(samples) % 3,
        class_names=("no", "yes"),
    )
