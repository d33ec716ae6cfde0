"""The plan of a search: time parts of it, then multiply."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bmnas.features.mapped import LIMIT
from bmnas.features.samples import batches_per_epoch, samples_per_epoch
from bmnas.lab.planning.synthetic import SyntheticFeatures, disk_speed
from bmnas.lab.planning.timing import BackboneCost, SearchCost, time_backbones, time_search
from bmnas.lab.planning.workload import Workload, features_workload, task_workload
from bmnas.machine.cost_meter import peak_memory
from bmnas.machine.processes import cores
from bmnas.machine.runtime import Runtime, seed_stage
from bmnas.pipeline.config import Config
from bmnas.tasks import check_task
from bmnas.tasks.task import Task
from bmnas.training.settings import UnimodalConfig

_BUDGET = 6.0  # seconds; getting ready takes some more
_BACKBONES = 0.5  # of it, where there is a task


@dataclass(frozen=True)
class Plan:
    """What a search is expected to cost; ``seconds`` by the names that metrics.json has.

    ``seconds`` has no ``backbones`` where there is no task, and ``extraction`` is the writing of
    the cache alone. Memory is in bytes: ``needed`` at the peak without the cache, ``available`` on
    the machine, ``device`` on an accelerator, None without one. The disk has ``free`` bytes, and
    takes and gives ``write`` and ``read`` bytes a second. ``calibration`` is how many seconds the
    measuring took.
    """

    workload: Workload
    seconds: Mapping[str, float]
    needed: int
    available: int
    device: int | None
    free: int
    write: float
    read: float
    calibration: float

    @property
    def resident(self) -> int:
        """The peak that a run would report, with what it has mapped of the cache."""
        return self.needed + min(self.workload.cache_bytes, LIMIT)

    @property
    def missing(self) -> float:
        """The fraction of the cache that finds no room in memory."""
        return missing(self.workload, self.needed, self.available)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready plain data."""
        work = self.workload
        return {
            "samples": {"train": work.train, "validation": work.validation},
            "features": dict(work.channels),
            "search": asdict(work.search),
            "seeds": work.seeds,
            "cache_bytes": work.cache_bytes,
            "memory": {
                "needed_bytes": self.needed,
                "cache_bytes": work.cache_bytes,
                "available_bytes": self.available,
                "device_bytes": self.device,
                "resident_bytes": self.resident,
                "fits": self.missing == 0,
            },
            "seconds": dict(self.seconds),
            "disk": {
                "write_bytes_per_second": self.write,
                "read_bytes_per_second": self.read,
                "free_bytes": self.free,
            },
            "calibration_seconds": self.calibration,
        }


def plan_task(task: Task, config: Config, runtime: Runtime, near: Path, *, seeds: int = 1) -> Plan:
    """Return what a search for ``task`` will cost on this machine, or ``seeds`` at once.

    Takes about ten seconds: parts of an epoch of backbones, extraction and search are run, in a
    folder beside ``near``, the future run folder, which is removed. Backbones are timed as if none
    were there yet. Reads no test data. Raises UserError when the task cannot be used.
    """
    check_task(task)
    started = time.perf_counter()
    with _scratch(near) as folder:
        seed_stage(0, "plan")
        costs = time_backbones(task, config, runtime, folder, _BACKBONES * _BUDGET)
        backbones = {name: cost.backbone for name, cost in costs.items()}
        workload = replace(task_workload(task, backbones, config.search), seeds=seeds)
        budget = (1 - _BACKBONES) * _BUDGET
        return _plan(workload, config.unimodal, costs, runtime, folder, budget, started)


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
    backbones: Mapping[str, BackboneCost],
    runtime: Runtime,
    folder: Path,
    budget: float,
    started: float,
) -> Plan:
    earlier = peak_memory()["resident_bytes"]
    features = SyntheticFeatures(workload, runtime.device)
    cost = time_search(workload, features, runtime, folder, budget)
    peak, available = peak_memory(), available_memory()
    # The synthetic features stand for a part of the cache.
    needed = max(earlier, peak["resident_bytes"] - features.bytes)
    if runtime.device.type == "cpu":
        # Seeds run in processes side by side.
        needed *= min(workload.seeds, cores())
    device = peak.get("device_bytes")
    if device is not None and features.resident:
        device += workload.cache_bytes - features.bytes
    row = workload.sample_bytes // len(workload.channels)
    write, read = disk_speed(folder, workload.cache_bytes, row)
    # What finds no room in memory is read from the disk again in every pass.
    reading = missing(workload, needed, available) * workload.sample_bytes / read
    searched = search_seconds(workload, cost, reading)
    before = backbone_seconds(workload, unimodal, backbones, write)
    return Plan(
        workload,
        {**before, **searched, "total": sum(before.values()) + searched["search"]},
        needed,
        available,
        device,
        shutil.disk_usage(folder).free,
        write,
        read,
        time.perf_counter() - started,
    )


def missing(workload: Workload, needed: int, available: int) -> float:
    """Return the fraction of the cache that finds no room beside ``needed`` bytes of memory.

    What a run has read of the cache stays in the system's memory as long as there is room.
    """
    return max(0.0, 1 - max(0, available - needed) / workload.cache_bytes)


def search_seconds(workload: Workload, cost: SearchCost, reading: float) -> dict[str, float]:
    """Return the seconds of the stages of the search; of several seeds, one after another.

    ``reading`` is how long a sample's features take from the disk, for those not in memory.
    """
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
    seconds = {name: n * (cost.samples[name] + reading) for name, n in counts.items() if n}
    if screened:
        seconds["screening"] = cost.screening
    found = {"compile": cost.compile, **seconds, "other": seeds * config.epochs * cost.epoch}
    return {**found, "search": sum(found.values())}


def backbone_seconds(
    workload: Workload, config: UnimodalConfig, costs: Mapping[str, BackboneCost], write: float
) -> dict[str, float]:
    """Return the seconds of training the backbones, scored on validation, and of extraction.

    Without ``costs`` there is nothing to train, and extraction is the writing of the cache alone,
    of which the disk takes ``write`` bytes a second.
    """
    writing = workload.cache_bytes / write
    if not costs:
        return {"extraction": writing}
    steps = config.epochs * batches_per_epoch(workload.train, config.batch_size)
    return {
        "backbones": sum(c.step * steps + c.row * workload.validation for c in costs.values()),
        # The rows that were timed went to a disk that may not have been busy yet.
        "extraction": sum(c.row * workload.rows[name] for name, c in costs.items()) + writing,
    }


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return the bytes that this process may still take: of the machine, or of its container.

    Files that are kept in memory count as free, as the system gives their room away.
    """
    if meminfo.is_file():
        free = 1024 * _numbers(meminfo)["MemAvailable:"]
    else:
        # No Linux: the pages of the whole machine.
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = (cgroup / name for name in ("memory.max", "memory.current"))
    if not used.is_file() or not limit.is_file() or limit.read_text().strip() == "max":
        return free
    files = _numbers(cgroup / "memory.stat").get("file", 0)
    return max(0, min(free, int(limit.read_text()) - int(used.read_text()) + files))


def _numbers(path: Path) -> dict[str, int]:
    """Return the number that follows the first word of each line; none where there is no file."""
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) > 1}


@contextmanager
def _scratch(near: Path) -> Iterator[Path]:
    """Yield a folder on the disk of ``near``, for a while."""
    there = next(
        parent for parent in (near.absolute(), *near.absolute().parents) if parent.is_dir()
    )
    with tempfile.TemporaryDirectory(prefix=".bmnas-plan-", dir=there) as folder:
        yield Path(folder)
