"""What part of an epoch takes: backbones on real samples, the search on synthetic features."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bmnas.backbones import Backbone
from bmnas.features.cache import open_features
from bmnas.features.reading import Pooled
from bmnas.features.samples import RawInput, RawSamples, batches_per_epoch, label_tensor
from bmnas.lab.planning.synthetic import SyntheticFeatures
from bmnas.lab.planning.workload import Workload
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.cost_meter import COMPILE
from bmnas.machine.progress import Silent
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config
from bmnas.pipeline.unimodal import new_backbone
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.one_shot import SAMPLES
from bmnas.strategies import STRATEGIES
from bmnas.strategies.problem import Outcome, SearchProblem, search_steps
from bmnas.tasks.task import Modality, Task
from bmnas.training.fit import Group, Recipe, fit
from bmnas.training.heads import head_for

T = TypeVar("T")

_FEW = 2  # batches of a first run
_EPOCHS = 3  # of the search, among which what it does once is divided
_ABSENT = -1  # the part of the samples that a part of a task leaves out


def grown(run: Callable[[int], T], most: int, budget: float) -> T:
    """Return what ``run`` returns of as many batches as take about ``budget`` seconds.

    There are ``most`` batches at most. The first run warms up and does not count, as what torch
    does once may take it seconds.
    """
    few = min(_FEW, most)
    run(few)
    started = time.perf_counter()
    found = run(few)
    batches = min(most, int(few * budget / max(time.perf_counter() - started, 1e-6)))
    return run(batches) if batches > few else found


@dataclass(frozen=True)
class BackboneCost:
    """A backbone with the seconds of a training step (0: it is not trained) and of a row.

    A row's seconds are those of its features: forward, pooling, writing.
    """

    backbone: Backbone
    step: float
    row: float


def time_backbones(
    task: Task, config: Config, runtime: Runtime, folder: Path, budget: float
) -> dict[str, BackboneCost]:
    """Time the backbones of ``task`` in about ``budget`` seconds; features go to ``folder``."""
    share = budget / len(task.modalities)
    most = batches_per_epoch(len(task.samples("train")), config.unimodal.batch_size)

    def cost(modality: Modality) -> BackboneCost:
        return grown(
            lambda batches: _backbone_cost(task, modality, config, runtime, folder, batches),
            most,
            share,
        )

    return {modality.name: cost(modality) for modality in task.modalities}


def _backbone_cost(
    task: Task, modality: Modality, config: Config, runtime: Runtime, folder: Path, batches: int
) -> BackboneCost:
    size, settings = config.unimodal.batch_size, config.unimodal
    chosen = task.samples("train")[: batches * size]
    # Somebody's own network, given as an object, must not be trained here.
    backbone, trained = copy.deepcopy(new_backbone(task, modality))
    backbone.to(runtime.device)
    step = 0.0
    if trained is not None:
        started = time.perf_counter()
        fit(
            trained,
            lambda inputs: backbone(inputs[0]),
            [Group(list(trained.parameters()), settings.max_lr)],
            RawSamples([RawInput(modality, backbone, chosen)], label_tensor(task, chosen)),
            head_for(task.kind, config.train.threshold),
            Recipe(1, size, settings.min_lr, settings.weight_decay, decoupled=True),
            device=runtime.device,
            checkpoint=None,
            progress=Silent(),
            stage=f"calibration of {modality.name}",
        )
        step = (time.perf_counter() - started) / batches_per_epoch(len(chosen), size)
    part = np.full(len(task.part), _ABSENT)
    part[chosen] = 0
    cache = open_features(
        dataclasses.replace(task, modalities=(modality,), part=part),
        {modality.name: backbone},
        parts=("train",),
        reading=Pooled(config.search.length),
        dtype=config.search.cache_dtype,
        folder=folder / f"{modality.name} {time.monotonic_ns()}",
        device=runtime.device,
        progress=Silent(),
    )
    # Samples may share rows.
    return BackboneCost(backbone, step, cache.seconds / len(cache.rows[modality.name]))


@dataclass(frozen=True)
class SearchCost:
    """Seconds of a sample in each pass of a search, by the names of the stages.

    Those of a short training are of a sample in one epoch, its part of what such a training costs
    besides included. ``epoch`` is what an epoch costs besides its passes; ``compile`` and
    ``screening`` are spent once.
    """

    samples: Mapping[str, float]
    epoch: float
    compile: float
    screening: float


def time_search(
    workload: Workload,
    features: SyntheticFeatures,
    runtime: Runtime,
    folder: Path,
    budget: float,
) -> SearchCost:
    """Run the search itself for a few epochs over parts of train and validation.

    They are as large as ``budget`` seconds allow, compilation apart; checkpoints go to ``folder``.
    """
    settings = dataclasses.replace(workload.search, epochs=_EPOCHS, candidate_epochs=1)
    size = settings.batch_size
    steps = search_steps(workload.search, workload.train, workload.validation)
    # A short search is compiled where the long one is.
    runtime = dataclasses.replace(runtime, compile=runtime.compiles(steps), pays_from=0)
    compiling = [0.0]

    def run(batches: int) -> tuple[Outcome[Architecture], int]:
        train = min(workload.train, batches * size)
        # In proportion to train, but a whole batch where there is one.
        wanted = max(min(size, workload.validation), train * workload.validation // workload.train)
        here = folder / f"search {time.monotonic_ns()}"
        outcome = STRATEGIES["bmnas"].search(
            SearchProblem(
                train=features.samples(train),
                validation=features.samples(wanted),
                classes=workload.outputs,
                head=head_for(workload.kind),
                config=settings,
                seed=0,
                runtime=runtime,
                checkpoint=Checkpoint(here / "checkpoint.pt", "plan", here / "history.jsonl"),
                candidates=lambda: Checkpoint(here / "rerank.pt", "plan"),
                progress=Silent(),
            )
        )
        # Later searches find some of it done.
        compiling.append(outcome.stages[COMPILE].seconds)
        return outcome, wanted

    outcome, validation = grown(run, batches_per_epoch(workload.train, size), budget)
    stages = {name: cost for name, cost in outcome.stages.items() if name != COMPILE}
    judged = min(SAMPLES, workload.validation) / min(SAMPLES, validation)
    return SearchCost(
        {name: cost.seconds / cost.samples for name, cost in stages.items() if cost.samples},
        (outcome.seconds - sum(cost.seconds for cost in outcome.stages.values())) / _EPOCHS,
        max(compiling),
        judged * sum(cost.seconds for cost in stages.values() if not cost.samples),
    )
