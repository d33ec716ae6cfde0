"""One run of many as plain data, and how it is handed to a process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bmnas.pipeline.config import Config
from bmnas.pipeline.run_folder import Run

Stage = Literal["search", "train", "export"]
BACKBONES = "backbones"
#: A module: the Cells of the genotype that was found, on other pairs of features.
SEARCHED = "searched"

#: A job with the folders that it reads and writes, as JSON; any process can do it.
Order = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One run of a sweep or a suite.

    ``name`` is its run folder inside the folder of all. ``way`` is ``search STRATEGY``,
    ``fusion NAME``, ``module NAME/PAIRS``, or ``backbones``, which trains the backbones and
    extracts the features that other jobs share; ``caches`` are then the lengths and types of the
    features. ``task`` holds the task's name and source. ``label`` is what the table says of the
    job. ``after`` names the job whose genotype this one starts from. ``space`` is where a search
    looks, None for the strategy's own.
    """

    name: str
    way: str
    task: Mapping[str, Any]
    seed: int
    config: Config
    label: Mapping[str, Any]
    stages: tuple[Stage, ...] = ("search",)
    after: str | None = None
    space: str | None = None
    caches: tuple[tuple[int, str], ...] = ()

    @property
    def backbones(self) -> str:
        """The folder of the backbones that this job shares with others, inside that of all."""
        depends = [self.task["source"], self.seed, dataclasses.asdict(self.config.unimodal)]
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        return f".{BACKBONES}/{digest[:12]}"

    def finished(self, folder: Path) -> bool:
        """Tell whether all stages are done in the run folder below ``folder``."""
        run = Run(folder / self.name)
        if self.stages[-1] == "search":
            return run.genotype.is_file()
        if self.stages[-1] == "train":
            return self.trained(folder)
        # The latency in onnxruntime is noted last.
        return bool(run.read_metrics().latency.onnxruntime)

    def trained(self, folder: Path) -> bool:
        """Tell whether the run folder below ``folder`` has a trained network."""
        return Run(folder / self.name).network.is_file()

    def order(self, folder: Path, device: str) -> Order:
        """Return what a process needs to know to do this job below ``folder``."""
        found = None if self.after is None else str(Run(folder / self.after).genotype)
        return {
            "name": self.name,
            "way": self.way,
            "source": self.task["source"],
            "space": self.space,
            "seed": self.seed,
            "preset": self.config.preset,
            "config": self.config.to_dict(),
            "stages": self.stages,
            "caches": self.caches,
            "run": str(folder / self.name),
            "backbones": str(folder / self.backbones),
            "found": found,
            "device": device,
        }


def backbones_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Return a job for each set of backbones that ``jobs`` share."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.backbones, []).append(job)
    made = []
    for name, group in groups.items():
        shapes = {(j.config.search.length, j.config.search.cache_dtype) for j in group}
        caches = tuple(sorted(shapes))
        made.append(dataclasses.replace(group[0], name=name, way=BACKBONES, caches=caches))
    return made
