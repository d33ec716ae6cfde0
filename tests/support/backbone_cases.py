"""A small modality of each kind that backbones read, for the tests of backbones."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from bmnas.tasks.task import Modality, ModalityType

WORDS = np.array(["a small red cat", "is it blue?", "", "the cat is red and the dog is blue"])


def modality(kind: str, rows: int = 12) -> Modality:
    """Return a random modality of ``rows`` rows; ``kind`` is a type, or one with a variant."""
    draw = np.random.default_rng(0)
    pixels = {
        "image": (28, 28),
        "image half": (8, 4),
        "image colour": (64, 64, 3),
        "image large": (160, 160),
        "clip": (6, 20, 20),
        "clip colour": (8, 32, 24, 3),
    }
    type_: ModalityType = kind.split()[0]  # type: ignore[assignment]
    rate = None
    if kind in pixels:
        data = draw.integers(0, 256, (rows, *pixels[kind]), dtype=np.uint8)
    elif kind == "image float":
        data = draw.normal(size=(rows, 16, 16))
    elif type_ == "waveform":
        data = draw.integers(-3000, 3000, (rows, 4000), dtype=np.int16)
        data, rate = (data / 32768, 16000) if kind == "waveform float" else (data, 8000)
    elif type_ == "sequence":
        data = draw.normal(size=(rows, 50, 6))
    elif type_ == "vector":
        data = draw.normal(size=(rows, 20))
    elif type_ == "text":
        data = WORDS[np.arange(rows) % len(WORDS)]
    else:
        data = draw.integers(0, 30, (rows, 12))
    return Modality("part", type_, data, sample_rate=rate)


KINDS = (
    "image",
    "image half",
    "image colour",
    "image large",
    "image float",
    "clip",
    "clip colour",
    "waveform",
    "waveform float",
    "sequence",
    "vector",
    "text",
    "tokens",
)

ONE_OF_EACH = ("image colour", "clip colour", "waveform", "sequence", "vector", "text", "tokens")


class TinyNet(nn.Module):
    """A user's convolutional network for grey images, with its own logits."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.second(self.first(x)).mean((2, 3)))
        return y
