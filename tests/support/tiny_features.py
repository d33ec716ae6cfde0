"""Feature caches of tiny tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bmnas.backbones import Backbone, build_backbone
from bmnas.backbones.conv import SequenceBackbone
from bmnas.features.cache import FeatureCache, open_features
from bmnas.features.reshape import Reading
from bmnas.machine.progress import Progress
from bmnas.tasks import Task

CPU = torch.device("cpu")
LENGTH = 4


def made(task: Task) -> dict[str, Backbone]:
    torch.manual_seed(0)
    train = task.samples("train")
    return {
        m.name: build_backbone(m, classes=task.classes, rows=m.data[m.rows_of(train)])
        for m in task.modalities
    }


def opened(
    folder: Path,
    task: Task,
    backbones: dict[str, Backbone],
    length: int = LENGTH,
    dtype: str = "float32",
) -> FeatureCache:
    return open_features(
        task,
        backbones,
        parts=("train", "validation"),
        reading=Reading(length),
        folder=folder,
        device=CPU,
        progress=Progress(),
        dtype=dtype,
    )


def entry(folder: Path) -> Path:
    return next(folder.glob("m0-*"))


def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the batch sizes of every call of a backbone; a single row only asks for shapes."""
    sizes: list[int] = []
    whole = SequenceBackbone.features

    def features(self: SequenceBackbone, x: torch.Tensor) -> list[torch.Tensor]:
        sizes.extend([len(x)] if len(x) > 1 else [])
        return whole(self, x)

    monkeypatch.setattr(SequenceBackbone, "features", features)
    return sizes
