"""The plan of a search: calibrate, then estimate."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bmnas.lab.planning.backbone_rates import BackboneRates, backbone_rates
from bmnas.lab.planning.disk import measure_disk
from bmnas.lab.planning.estimate import Memory, Plan, backbone_seconds, search_seconds
from bmnas.lab.planning.machine import available_memory
from bmnas.lab.planning.search_rates import SearchTrial
from bmnas.lab.planning.synthetic import MadeUpFeatures
from bmnas.lab.planning.workload import Workload, features_workload, task_workload
from bmnas.machine.cost_meter import peak_memory
from bmnas.machine.runtime import Runtime, seed_stage
from bmnas.pipeline.config import Config
from bmnas.tasks import check_task
from bmnas.tasks.task import Task
from bmnas.training.settings import UnimodalConfig

_BUDGET = 6.0  # seconds; the disk has three more, and getting ready takes some
_BACKBONES = 0.5  # of it, where there is a task


def plan_task(task: Task, config: Config, runtime: Runtime, near: Path, *, seeds: int = 1) -> Plan:
    """Return what a search for ``task`` will cost on this machine, or ``seeds`` at once.

    Takes about ten seconds: real steps of backbones, extraction and search are timed, in a folder
    beside ``near``, the future run folder, which is removed. Backbones are timed as if none were
    there yet. Reads no test data. Raises UserError when the task cannot be used.
    """
    check_task(task)
    started = time.perf_counter()
    with _scratch(near) as folder:
        seed_stage(0, "plan")
        rates = backbone_rates(task, config, runtime, folder, _BACKBONES * _BUDGET)
        backbones = {name: rate.backbone for name, rate in rates.items()}
        workload = replace(task_workload(task, backbones, config.search), seeds=seeds)
        budget = (1 - _BACKBONES) * _BUDGET
        return _plan(workload, config.unimodal, rates, runtime, folder, budget, started)


def plan_features(
    channels: Sequence[int],
    samples: int,
    validation: float,
    config: Config,
    runtime: Runtime,
    near: Path,
    *,
    seeds: int = 1,
) -> Plan:
    """Return what a search over features of ``channels`` will cost on this machine.

    For data that are not there yet: ``samples`` of train and validation, the latter a fraction
    ``validation`` of them. Otherwise as ``plan_task``. Raises UserError for too few samples.
    """
    workload = features_workload(channels, samples, validation, config.search)
    workload = replace(workload, seeds=seeds)
    started = time.perf_counter()
    with _scratch(near) as folder:
        return _plan(workload, config.unimodal, {}, runtime, folder, _BUDGET, started)


def _plan(
    workload: Workload,
    unimodal: UnimodalConfig,
    backbones: Mapping[str, BackboneRates],
    runtime: Runtime,
    folder: Path,
    budget: float,
    started: float,
) -> Plan:
    earlier = peak_memory()["resident_bytes"]
    features = MadeUpFeatures(workload, folder, runtime.device)
    rates = SearchTrial(workload, features, runtime, folder).rates(budget)
    peak = peak_memory()
    device_bytes = peak.get("device_bytes")
    if device_bytes is not None and features.resident:
        device_bytes += workload.cache_bytes - features.bytes
    memory = Memory(
        # The made-up features are mapped like the cache, and stand for a part of it.
        needed_bytes=max(earlier, peak["resident_bytes"] - features.bytes),
        cache_bytes=workload.cache_bytes,
        available_bytes=available_memory(),
        device_bytes=device_bytes,
    )
    row = workload.sample_bytes // len(workload.channels)
    disk = measure_disk(folder, workload.cache_bytes, row)
    before = backbone_seconds(workload, unimodal, backbones, disk)
    searched = search_seconds(workload, rates, memory, disk)
    seconds = {**before, **searched, "total": sum(before.values()) + searched["search"]}
    return Plan(workload, seconds, memory, disk, time.perf_counter() - started)


@contextmanager
def _scratch(near: Path) -> Iterator[Path]:
    """Yield a folder on the disk of ``near``, for a while."""
    there = next(
        parent for parent in (near.absolute(), *near.absolute().parents) if parent.is_dir()
    )
    with tempfile.TemporaryDirectory(prefix=".bmnas-plan-", dir=there) as folder:
        yield Path(folder)
