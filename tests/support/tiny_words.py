"""A task of a few dozen questions about images, for networks that read tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_problems import tiny_problem

from bmnas.features.samples import FeatureSamples
from bmnas.strategies.problem import SearchProblem
from bmnas.tasks import Modality, Task

_COLOURS = ("red", "green", "blue")


def tiny_questions(
    samples: int = 96, backbone: str | None = "embedding", images_by: str | None = None
) -> Task:
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
            Modality("image", "image", images, backbone=images_by),
            Modality("question", "text", np.array(texts), backbone=backbone),
        ),
        labels=(shown == asked).astype(np.int64),
        part=np.arange(samples) % 3,
        class_names=("no", "yes"),
    )


TOKENS = ("question.1", "image.regions")
RAW = {"question.1": 6, "image.regions": 5 + 4}


def token_samples(count: int, seed: int = 0) -> FeatureSamples:
    """Up to four words and five regions, two samples a row of regions: is one to be seen?"""
    draw = torch.Generator().manual_seed(seed)
    rows = count // 2
    words = torch.randn(count, 4, 6, generator=draw)
    regions = torch.randn(rows, 5, 9, generator=draw)
    first = torch.randint(0, 20, (rows, 5, 2), generator=draw)
    sizes = torch.randint(1, 9, (rows, 5, 2), generator=draw)
    regions[..., 5:] = torch.cat([first, first + sizes], -1)
    lengths = torch.randint(1, 5, (count, 1), generator=draw)
    numbers = torch.arange(count) // 2
    labels = (words[:, 0, 0] * regions[numbers, 0, 0] > 0).long()
    return FeatureSamples(
        TOKENS,
        {TOKENS[0]: words, TOKENS[1]: regions},
        {"question": torch.arange(count), "image": numbers},
        labels,
        {TOKENS[0]: torch.arange(4) < lengths, TOKENS[1]: torch.ones(rows, 5) > 0},
    )


def token_problem(folder: Path, own: dict[str, Any] | None = None, **changes: Any) -> SearchProblem:
    """A problem of 80 train and 40 validation samples of tokens."""
    return dataclasses.replace(
        tiny_problem(folder, strategy="mmnas", own=own, **changes),
        train=token_samples(80),
        validation=token_samples(40, seed=1),
        classes=2,
        types={"image": "regions", "question": "text"},
    )


def captioned(count: int = 96) -> Task:
    """Pictures with a bright square in one of four corners, and a caption that names it."""
    draw = np.random.default_rng(0)
    place = np.arange(count) // 3 % 4
    images = draw.integers(0, 40, (count, 16, 16), dtype=np.uint8)
    for image, own in zip(images, place, strict=True):
        x, y = 8 * (own % 2), 8 * (own // 2)
        image[y : y + 8, x : x + 8] += 180
    words = np.array(["up left", "up right", "down left", "down right"])
    return Task(
        name="captioned",
        kind="matching",
        modalities=(Modality("text", "text", words[place]), Modality("image", "image", images)),
        labels=place,
        part=np.arange(count) % 3,
        class_names=("match",),
    )
