"""Trained networks of a few thousand weights on random data, for tests of the export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from bmnas.backbones import Backbone, build_backbone
from bmnas.features.samples import train_rows
from bmnas.pipeline.multimodal import FUSION, MultimodalNetwork
from bmnas.pipeline.trained import TaskInfo, TrainedNetwork
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.operations import PAPER
from bmnas.spaces.registry import build_fusion
from bmnas.tasks.task import Modality, ModalityType, Task
from bmnas.training.settings import Weighing

KINDS = ("image", "waveform", "sequence", "vector", "text", "clip", "tokens")
WORDS = np.array(["a red cat", "is it blue?", "purple", "the cat and the dog are red"])


def tiny_modality(name: str, kind: str, rows: int, draw: np.random.Generator) -> Modality:
    """Return ``rows`` small random rows of a modality type."""
    data: np.ndarray[Any, Any]
    if kind == "image":
        data = draw.integers(0, 256, (rows, 9, 7), dtype=np.uint8)
    elif kind == "clip":
        data = draw.integers(0, 256, (rows, 5, 6, 8), dtype=np.uint8)
    elif kind == "waveform":
        data = draw.integers(-3000, 3000, (rows, 1000), dtype=np.int16)
    elif kind == "sequence":
        data = draw.normal(size=(rows, 11, 3)).astype(np.float32)
    elif kind == "vector":
        data = draw.normal(size=(rows, 5))
    elif kind == "text":
        data = WORDS[draw.integers(0, len(WORDS), rows)]
    else:
        data = draw.integers(0, 12, (rows, 6))
    rate = 4000 if kind == "waveform" else None
    return Modality(name, cast(ModalityType, kind), data, sample_rate=rate)


def tiny_task(
    kinds: Sequence[str] = ("image", "vector"),
    *,
    kind: str = "multiclass",
    names: Sequence[str] | None = None,
    test: int = 70,
    seed: int = 0,
) -> Task:
    """Return a task of three classes with one modality of each of ``kinds``."""
    draw = np.random.default_rng(seed)
    rows = 18 + test
    part = np.repeat([0, 1, 2], [12, 6, test])
    labels = np.arange(rows) % 3
    return Task(
        name="tiny",
        kind=kind,
        modalities=tuple(
            tiny_modality(name, of, rows, draw)
            for name, of in zip(names or [f"m{i}" for i in range(len(kinds))], kinds, strict=True)
        ),
        labels=labels if kind == "multiclass" else np.eye(3, dtype=np.int64)[labels],
        part=part,
        class_names=("cat", "dog", "owl"),
    )


def tiny_network(
    task: Task,
    architecture: Architecture | None = None,
    *,
    seed: int = 0,
    channels: int = 6,
    unimodal_logits: bool = False,
) -> TrainedNetwork:
    """Return a network for ``task`` as after some training; None: a Cell over two features."""
    torch.manual_seed(seed)
    backbones: dict[str, Backbone] = {
        m.name: build_backbone(m, classes=task.classes, rows=train_rows(task, m))
        for m in task.modalities
    }
    raw = {
        f"{name}.{feature}": width
        for name, backbone in backbones.items()
        for feature, width in zip(backbone.feature_names, backbone.feature_channels, strict=True)
    }
    if architecture is None:
        first, second = (f"{m.name}.2" for m in task.modalities[:2])
        steps = (Step("attention", ("x", "y")), Step("concat_fc", ("step1", "y")))
        architecture = Genotype(tuple(raw), channels, 4, (Cell((first, second), steps),))
    fusion = build_fusion(architecture, raw, classes=task.classes, dropout=0.1)
    members = [*([FUSION] if fusion.features else []), *backbones]
    weighing = Weighing(dict.fromkeys(members, 1.0)) if unimodal_logits else None
    network = MultimodalNetwork(backbones, fusion, weighing).eval()
    roughen(network)
    info = TaskInfo(
        name=task.name,
        kind=task.kind,
        class_names=task.class_names,
        threshold=0.4 if task.kind == "multilabel" else None,
        source=task.source,
        scale=task.scale,
    )
    return TrainedNetwork(network, architecture, info, 0.1)


@torch.no_grad()
def roughen(network: nn.Module) -> None:
    """Move norms away from their start, at which a lost one would not be noticed."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
        norm = isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm)
        if norm and module.weight is not None:  # one that never runs has lost it
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)


def random_genotype(task: Task, draw: np.random.Generator) -> Genotype:
    """Return a genotype of 1 to 4 Cells of 1 to 3 steps with any operation, any length."""
    features = [f"{m.name}.{k}" for m in task.modalities for k in (1, 2, 3)]
    cells: list[Cell] = []
    taken: set[str] = set()
    for _ in range(draw.integers(1, 5)):
        nodes = [*features, *(f"cell{k + 1}" for k in range(len(cells)))]
        fresh = [node for node in nodes if node not in taken]
        one = str(draw.choice(fresh))
        other = str(draw.choice([node for node in nodes if node != one]))
        x, y = sorted((one, other), key=nodes.index)
        taken.update((x, y))
        steps: list[Step] = []
        for m in range(draw.integers(1, 4)):
            inner = ["x", "y", *(f"step{k + 1}" for k in range(m))]
            first, second = map(str, draw.permutation(inner)[:2])
            steps.append(Step(str(draw.choice(PAPER)), (first, second)))
        cells.append(Cell((x, y), tuple(steps)))
    length = int(draw.choice([4, 6, 8, 9]))
    return Genotype(tuple(features), 6, length, tuple(cells))
