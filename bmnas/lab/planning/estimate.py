"""From rates and a workload, the costs of the whole search: arithmetic, no measuring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bmnas.features.mapped import LIMIT
from bmnas.features.samples import batches_per_epoch, samples_per_epoch
from bmnas.lab.planning.backbone_rates import BackboneRates
from bmnas.lab.planning.disk import Disk
from bmnas.lab.planning.search_rates import SearchRates
from bmnas.lab.planning.workload import Workload
from bmnas.training.settings import UnimodalConfig


@dataclass(frozen=True)
class Memory:
    """Bytes: the peak without the cache, the mapped cache, what the machine has free.

    What a run has read of the cache stays in the system's memory as long as there is room.
    ``device_bytes`` is None on a CPU.
    """

    needed_bytes: int
    cache_bytes: int
    available_bytes: int
    device_bytes: int | None

    @property
    def resident_bytes(self) -> int:
        """The peak that a run would report, with what it has mapped of the cache."""
        return self.needed_bytes + min(self.cache_bytes, LIMIT)

    @property
    def missing(self) -> float:
        """The fraction of the cache that finds no room in memory."""
        room = max(0, self.available_bytes - self.needed_bytes)
        return max(0.0, 1 - room / self.cache_bytes)


@dataclass(frozen=True)
class Plan:
    """What a search is expected to cost; ``seconds`` by the names that metrics.json has.

    ``seconds`` has no ``backbones`` where there is no task, and ``extraction`` is the writing of
    the cache alone. ``calibration`` is how many seconds the measuring took.
    """

    workload: Workload
    seconds: Mapping[str, float]
    memory: Memory
    disk: Disk
    calibration: float

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready plain data."""
        work, memory = self.workload, self.memory
        return {
            "samples": {"train": work.train, "validation": work.validation},
            "features": dict(work.channels),
            "search": asdict(work.search),
            "seeds": work.seeds,
            "cache_bytes": work.cache_bytes,
            "memory": {
                **asdict(memory),
                "resident_bytes": memory.resident_bytes,
                "fits": memory.missing == 0,
            },
            "seconds": dict(self.seconds),
            "disk": {
                "write_bytes_per_second": self.disk.write,
                "read_bytes_per_second": self.disk.read,
                "free_bytes": self.disk.free,
            },
            "calibration_seconds": self.calibration,
        }


def search_seconds(
    workload: Workload, rates: SearchRates, memory: Memory, disk: Disk
) -> dict[str, float]:
    """Return the seconds of the stages of the search.

    What of the cache finds no room in memory is read from the disk again in every pass.
    """
    config = workload.search
    weights = samples_per_epoch(workload.train, config.batch_size)
    architecture = samples_per_epoch(workload.validation, config.batch_size)
    trainings = config.rerank + 1 if config.rerank else 0
    # Where there are more seeds, what they found is all that is compared.
    screened = config.rerank >= workload.seeds
    # From a sample's pass to the samples that make it, and how long each takes besides reading.
    seeds, epochs = workload.seeds, config.epochs
    passes = {
        # Several seeds read each batch once.
        "search_weights": (epochs * weights, seeds * rates.weights),
        "search_architecture": (epochs * architecture, seeds * rates.architecture),
        "validation": (epochs * workload.validation, seeds * rates.validation),
        "single_networks": (screened * config.candidate_epochs * weights, rates.single_networks),
        "rerank": (trainings * config.candidate_epochs * weights, rates.rerank),
    }
    reading = memory.missing * workload.sample_bytes / disk.read
    seconds = {name: count * (rate + reading) for name, (count, rate) in passes.items() if count}
    if screened:
        seconds["screening"] = rates.screening
    found = {"compile": rates.compile, **seconds, "other": config.epochs * rates.epoch}
    return {**found, "search": sum(found.values())}


def backbone_seconds(
    workload: Workload, config: UnimodalConfig, rates: Mapping[str, BackboneRates], disk: Disk
) -> dict[str, float]:
    """Return the seconds of training the backbones, scored on validation, and of extraction.

    Without ``rates`` there is nothing to train, and extraction is the writing of the cache alone.
    """
    writing = workload.cache_bytes / disk.write
    if not rates:
        return {"extraction": writing}
    steps = config.epochs * batches_per_epoch(workload.train, config.batch_size)
    return {
        "backbones": sum(
            steps * rate.step + workload.validation * rate.row for rate in rates.values()
        ),
        # The rows that were timed went to a disk that may not have been busy yet.
        "extraction": sum(workload.rows[name] * rate.row for name, rate in rates.items()) + writing,
    }
