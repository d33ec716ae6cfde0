"""What a search will cost on this machine: part of it is timed, the rest is arithmetic."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from bmnas.backbones import Backbone
from bmnas.features.cache import cache_bytes, open_features
from bmnas.features.reading import Pooled
from bmnas.features.samples import (
    FeatureSamples,
    RawInput,
    RawSamples,
    batches_per_epoch,
    label_tensor,
    samples_per_epoch,
)
from bmnas.features.transfer import room
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import COMPILE, peak_memory
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime, cores, seed_stage
from bmnas.pipeline.config import Config
from bmnas.pipeline.joint import channels_of
from bmnas.pipeline.unimodal import new_backbone
from bmnas.spaces.cells.one_shot import SAMPLES
from bmnas.strategies import STRATEGIES
from bmnas.strategies.problem import SearchProblem, search_steps
from bmnas.strategies.settings import SearchConfig
from bmnas.tasks import check_task
from bmnas.tasks.kinds import Multiclass, task_kind
from bmnas.tasks.task import Modality, Task
from bmnas.training.fit import Group, Recipe, fit
from bmnas.training.heads import head_for
from bmnas.training.settings import UnimodalConfig

T = TypeVar("T")

_BUDGET = 6.0  # seconds of timing; getting ready takes some more
_BACKBONES = 0.5  # of it, where there is a task
_FEW = 2  # batches of a first run
_EPOCHS = 3  # of the search, among which what it does once is divided
_BYTES = 1 << 27  # of synthetic features: more than a processor caches, and made in a moment
_CLASSES = 60  # where no task says how many; they hardly matter
_ABSENT = -1  # the part of the samples that a part of a task leaves out


@dataclass(frozen=True)
class Workload:
    """The data and the settings of a search.

    ``channels`` is C_raw of every feature by its name, ``<modality>.<feature>``; ``rows`` how many
    rows of each modality train and validation use, ``seeds`` how many searches run at once.
    """

    channels: Mapping[str, int]
    rows: Mapping[str, int]
    train: int
    validation: int
    classes: int
    kind: str
    search: SearchConfig
    seeds: int = 1

    @classmethod
    def of_task(
        cls, task: Task, backbones: Mapping[str, Backbone], search: SearchConfig
    ) -> Workload:
        """Return the workload of a search for ``task`` with ``backbones``."""
        used = task.samples("train", "validation")
        return cls(
            channels=channels_of(backbones),
            rows={m.name: len(np.unique(m.rows_of(used))) for m in task.modalities},
            train=len(task.samples("train")),
            validation=len(task.samples("validation")),
            classes=task.classes,
            kind=task.kind,
            search=search,
        )

    @classmethod
    def of_features(
        cls, channels: Sequence[int], samples: int, validation: float, search: SearchConfig
    ) -> Workload:
        """Return the workload of a search over ``channels``, where there are no data yet.

        ``samples`` are train and validation together, ``validation`` the latter's fraction. Raises
        UserError when there are too few of them.
        """
        held_out = round(samples * validation)
        if held_out < 2 or samples - held_out < 2:
            raise UserError(
                f"--samples, --validation: received {samples} samples, of which {held_out} for "
                "validation; expected at least 2 for each part"
            )
        features = {f"m.{number}": count for number, count in enumerate(channels, 1)}
        train, kind = samples - held_out, Multiclass.name
        return cls(features, {"m": samples}, train, held_out, _CLASSES, kind, search)

    def bytes_of(self, rows: Mapping[str, int]) -> int:
        """Return what the features of ``rows`` of each modality take in the cache."""
        length, dtype = self.search.length, self.search.cache_dtype
        return sum(
            cache_bytes(rows[name.partition(".")[0]], length, channels, dtype)
            for name, channels in self.channels.items()
        )

    @property
    def cache_bytes(self) -> int:
        """The size of the feature cache on disk."""
        return self.bytes_of(self.rows)


@dataclass(frozen=True)
class Plan:
    """What a search is expected to cost; ``seconds`` by the names that metrics.json has.

    Without a task there are no seconds of backbones and extraction. Memory is in bytes: ``memory``
    at the peak without the cache, ``device`` on an accelerator, None without one. The disk has
    ``free`` bytes.
    """

    workload: Workload
    seconds: Mapping[str, float]
    memory: int
    device: int | None
    free: int

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready plain data."""
        work = self.workload
        return {
            "samples": {"train": work.train, "validation": work.validation},
            "features": dict(work.channels),
            "search": asdict(work.search),
            "seeds": work.seeds,
            "cache_bytes": work.cache_bytes,
            "memory": {"needed_bytes": self.memory, "device_bytes": self.device},
            "seconds": dict(self.seconds),
            "disk": {"free_bytes": self.free},
        }


def plan_task(task: Task, config: Config, runtime: Runtime, near: Path, *, seeds: int = 1) -> Plan:
    """Return what a search for ``task`` will cost on this machine, or ``seeds`` at once.

    Takes about ten seconds: parts of an epoch of backbones, extraction and search are run, in a
    folder beside ``near``, the future run folder, which is removed. Backbones are timed as if none
    were there yet. Reads no test data. Raises UserError when the task cannot be used.
    """
    check_task(task)
    with _scratch(near) as name:
        folder = Path(name)
        seed_stage(0, "plan")
        share = _BACKBONES * _BUDGET / len(task.modalities)
        costs = {
            modality.name: time_backbone(task, modality, config, runtime, folder, share)
            for modality in task.modalities
        }
        backbones = {name: cost.backbone for name, cost in costs.items()}
        workload = replace(Workload.of_task(task, backbones, config.search), seeds=seeds)
        before = backbone_seconds(workload, config.unimodal, costs)
        return _plan(workload, before, runtime, folder, (1 - _BACKBONES) * _BUDGET)


def plan_features(workload: Workload, runtime: Runtime, near: Path) -> Plan:
    """Return what the search alone will cost, where there are no data yet; see ``plan_task``."""
    with _scratch(near) as folder:
        return _plan(workload, {}, runtime, Path(folder), _BUDGET)


def _plan(
    workload: Workload, before: Mapping[str, float], runtime: Runtime, folder: Path, budget: float
) -> Plan:
    earlier = peak_memory()["resident_bytes"]
    features = SyntheticFeatures(workload, runtime.device)
    searched = search_seconds(workload, time_search(workload, features, runtime, folder, budget))
    seconds = {**before, **searched, "total": sum(before.values()) + searched["search"]}
    peak = peak_memory()
    # The synthetic features stand for a part of the cache.
    memory = max(earlier, peak["resident_bytes"] - features.bytes)
    if runtime.device.type == "cpu":
        # Seeds run in processes side by side.
        memory *= min(workload.seeds, cores())
    device = peak.get("device_bytes")
    if device is not None and features.resident:
        device += workload.cache_bytes - features.bytes
    return Plan(workload, seconds, memory, device, shutil.disk_usage(folder).free)


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


def time_backbone(
    task: Task, modality: Modality, config: Config, runtime: Runtime, folder: Path, budget: float
) -> BackboneCost:
    """Train and extract on part of ``task`` for ``budget`` seconds; features go to ``folder``."""
    settings = config.unimodal

    def run(batches: int) -> BackboneCost:
        chosen = task.samples("train")[: batches * settings.batch_size]
        # Somebody's own network, given as an object, must not be trained here.
        backbone, trained = copy.deepcopy(new_backbone(task, modality))
        backbone.to(runtime.device)
        started = time.perf_counter()
        if trained is not None:
            fit(
                trained,
                lambda inputs: backbone(inputs[0]),
                [Group(list(trained.parameters()), settings.max_lr)],
                RawSamples([RawInput(modality, backbone, chosen)], label_tensor(task, chosen)),
                head_for(task.kind, config.train.threshold),
                Recipe(
                    1, settings.batch_size, settings.min_lr, settings.weight_decay, decoupled=True
                ),
                device=runtime.device,
                checkpoint=None,
                progress=Progress(),
                stage=f"calibration of {modality.name}",
            )
        seconds = 0.0 if trained is None else time.perf_counter() - started
        part = np.full(len(task.part), _ABSENT)
        part[chosen] = 0
        cache = open_features(
            replace(task, modalities=(modality,), part=part),
            {modality.name: backbone},
            parts=("train",),
            reading=Pooled(config.search.length),
            dtype=config.search.cache_dtype,
            folder=folder / f"{modality.name} {time.monotonic_ns()}",
            device=runtime.device,
            progress=Progress(),
        )
        step = seconds / batches_per_epoch(len(chosen), settings.batch_size)
        # Samples may share rows.
        return BackboneCost(backbone, step, cache.seconds / len(cache.rows[modality.name]))

    return grown(run, batches_per_epoch(len(task.samples("train")), settings.batch_size), budget)


def backbone_seconds(
    workload: Workload, config: UnimodalConfig, costs: Mapping[str, BackboneCost]
) -> dict[str, float]:
    """Return the seconds of training the backbones, scored on validation, and of extraction."""
    steps = config.epochs * batches_per_epoch(workload.train, config.batch_size)
    return {
        "backbones": sum(c.step * steps + c.row * workload.validation for c in costs.values()),
        "extraction": sum(c.row * workload.rows[name] for name, c in costs.items()),
    }


class SyntheticFeatures:
    """Random features of a workload, ``resident`` on ``device`` where the search's would be."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self._workload = workload
        sample = workload.bytes_of(dict.fromkeys(workload.rows, 1))
        self._rows = max(2, min(workload.train + workload.validation, _BYTES // sample))
        self.bytes = self._rows * sample
        self.resident = workload.cache_bytes <= room(device)
        length, dtype = workload.search.length, getattr(torch, workload.search.cache_dtype)
        place = device if self.resident else "cpu"
        self._arrays = {
            name: torch.randn(self._rows, length, channels, dtype=dtype, device=place)
            for name, channels in workload.channels.items()
        }

    def samples(self, count: int) -> FeatureSamples:
        """Return ``count`` labelled samples, as many as asked for: rows come again."""
        kind = task_kind(self._workload.kind)
        labels = kind.synthetic(count, self._workload.classes).astype(kind.dtype)
        rows = dict.fromkeys(self._workload.rows, torch.arange(count) % self._rows)
        return FeatureSamples(tuple(self._arrays), self._arrays, rows, torch.from_numpy(labels))


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
    workload: Workload, features: SyntheticFeatures, runtime: Runtime, folder: Path, budget: float
) -> SearchCost:
    """Run the search itself for a few epochs over parts of train and validation.

    They are as large as ``budget`` seconds allow, compilation apart; checkpoints go to ``folder``.
    """
    settings = replace(workload.search, epochs=_EPOCHS, candidate_epochs=1)
    size = settings.batch_size
    steps = search_steps(workload.search, workload.train, workload.validation)
    # A short search is compiled where the long one is.
    runtime = replace(runtime, compile=runtime.compiles(steps), pays_from=0)
    compiling = [0.0]

    def run(batches: int) -> SearchCost:
        train = min(workload.train, batches * size)
        # In proportion to train, but a whole batch where there is one.
        wanted = max(min(size, workload.validation), train * workload.validation // workload.train)
        here = folder / f"search {time.monotonic_ns()}"
        outcome = STRATEGIES["bmnas"].search(
            SearchProblem(
                train=features.samples(train),
                validation=features.samples(wanted),
                classes=task_kind(workload.kind).outputs(workload.classes),
                head=head_for(workload.kind),
                config=settings,
                seed=0,
                runtime=runtime,
                checkpoint=Checkpoint(here / "checkpoint.pt", "plan", here / "history.jsonl"),
                candidates=lambda: Checkpoint(here / "rerank.pt", "plan"),
                progress=Progress(),
            )
        )
        stages = dict(outcome.stages)
        other = outcome.seconds - sum(cost.seconds for cost in stages.values())
        # Later searches find some of it done.
        compiling.append(stages.pop(COMPILE).seconds)
        judged = min(SAMPLES, workload.validation) / min(SAMPLES, wanted)
        return SearchCost(
            {name: cost.seconds / cost.samples for name, cost in stages.items() if cost.samples},
            other / _EPOCHS,
            max(compiling),
            judged * sum(cost.seconds for cost in stages.values() if not cost.samples),
        )

    return grown(run, batches_per_epoch(workload.train, size), budget)


def search_seconds(workload: Workload, cost: SearchCost) -> dict[str, float]:
    """Return the seconds of the stages of the search; of several seeds, one after another."""
    config, seeds = workload.search, workload.seeds
    weights = samples_per_epoch(workload.train, config.batch_size)
    architecture = samples_per_epoch(workload.validation, config.batch_size)
    # Where there are more seeds, what they found is all that is compared.
    screened = config.rerank >= seeds
    trainings = config.rerank + 1 if config.rerank else 0
    counts = {
        "search_weights": seeds * config.epochs * weights,
        "search_architecture": seeds * config.epochs * architecture,
        "validation": seeds * config.epochs * workload.validation,
        "single_networks": screened * config.candidate_epochs * weights,
        "rerank": trainings * config.candidate_epochs * weights,
    }
    seconds = {name: count * cost.samples[name] for name, count in counts.items() if count}
    if screened:
        seconds["screening"] = cost.screening
    found = {"compile": cost.compile, **seconds, "other": seeds * config.epochs * cost.epoch}
    return {**found, "search": sum(found.values())}


def _scratch(near: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder on the disk of ``near``, for a while."""
    near = near.absolute()
    there = next(parent for parent in (near, *near.parents) if parent.is_dir())
    return tempfile.TemporaryDirectory(prefix=".bmnas-plan-", dir=there)
