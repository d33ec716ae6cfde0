"""How fast a task's backbones are: the real training loop and extraction, on a slice of train."""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from bmnas.backbones import Backbone
from bmnas.features.cache import open_features
from bmnas.features.reading import Pooled
from bmnas.features.samples import RawInput, RawSamples, batches_per_epoch, label_tensor
from bmnas.lab.planning.settle import settle
from bmnas.machine.progress import Silent
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config
from bmnas.pipeline.unimodal import new_backbone
from bmnas.strategies.settings import SearchConfig
from bmnas.tasks.task import Modality, Task
from bmnas.training.fit import Group, Recipe, fit
from bmnas.training.heads import head_for
from bmnas.training.settings import UnimodalConfig

_ABSENT = -1  # the part of the samples that a slice of a task leaves out


@dataclass(frozen=True)
class BackboneRates:
    """A modality's backbone, seconds of a training step (0: it is not trained) and of a row.

    A row's seconds are those of its features: forward, pooling, writing.
    """

    backbone: Backbone
    step: float
    row: float


def backbone_rates(
    task: Task, config: Config, runtime: Runtime, folder: Path, budget: float
) -> dict[str, BackboneRates]:
    """Time the backbones of ``task`` in about ``budget`` seconds; features go to ``folder``."""
    share = budget / len(task.modalities)
    found = {}
    for modality in task.modalities:
        # Somebody's own network, given as an object, must not be trained here.
        backbone, trained = copy.deepcopy(new_backbone(task, modality))
        backbone.to(runtime.device)
        step = 0.0
        if trained is not None:
            step = _step(task, modality, backbone, trained, config.unimodal, runtime, share / 2)
        row = _row(task, modality, backbone, config.search, runtime, folder, share / 2)
        found[modality.name] = BackboneRates(backbone, step, row)
    return found


def _step(
    task: Task,
    modality: Modality,
    backbone: Backbone,
    trained: nn.Module,
    config: UnimodalConfig,
    runtime: Runtime,
    budget: float,
) -> float:
    train = task.samples("train")

    def steps(count: int) -> float:
        chosen = train[: count * config.batch_size]
        samples = RawSamples([RawInput(modality, backbone, chosen)], label_tensor(task, chosen))
        started = time.perf_counter()
        fit(
            trained,
            lambda inputs: backbone(inputs[0]),
            [Group(list(trained.parameters()), config.max_lr)],
            samples,
            head_for(task.kind),
            Recipe(1, config.batch_size, config.min_lr, config.weight_decay, decoupled=True),
            device=runtime.device,
            checkpoint=None,
            progress=Silent(),
            stage=f"calibration of {modality.name}",
        )
        return time.perf_counter() - started

    return settle(steps, 1, batches_per_epoch(len(train), config.batch_size), budget)


def _row(
    task: Task,
    modality: Modality,
    backbone: Backbone,
    config: SearchConfig,
    runtime: Runtime,
    folder: Path,
    budget: float,
) -> float:
    train = task.samples("train")

    def extract(samples: int) -> float:
        part = np.full(len(task.part), _ABSENT)
        part[train[:samples]] = 0
        cache = open_features(
            dataclasses.replace(task, modalities=(modality,), part=part),
            {modality.name: backbone},
            parts=("train",),
            reading=Pooled(config.length),
            dtype=config.cache_dtype,
            folder=folder / f"{modality.name} {samples} {time.monotonic_ns()}",
            device=runtime.device,
            progress=Silent(),
        )
        # Samples may share rows.
        return cache.seconds * samples / len(cache.rows[modality.name])

    return settle(extract, min(32, len(train)), len(train), budget)
