"""Building a table: every network of a space trained for a short fixed budget, batch by batch.

The networks of a structure are trained together (``batch``), each as a candidate of a search is
(``strategies.candidates``): the same epochs, batch size, learning rates and dropout, from cached
features of frozen backbones. A batch's results are a file of their own, so that a build that was
stopped, in whatever way, goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bmnas.config import Config, SearchConfig
from bmnas.cost import count_parameters, hardware, measure_latency, versions
from bmnas.errors import UserError
from bmnas.features import FeatureCache, open_features
from bmnas.files import atomic_path, read_json, write_json
from bmnas.fit import Group, Recipe, fit
from bmnas.genotype import Genotype
from bmnas.metrics import Objective, evaluate
from bmnas.network import FusionNetwork
from bmnas.progress import Progress, Silent
from bmnas.runs import locked
from bmnas.runtime import Runtime, check_seed, seed_stage
from bmnas.stages.unimodal import unimodal_networks
from bmnas.tabular.batch import BatchedNetwork, BatchedObjective, structure
from bmnas.tabular.space import Space
from bmnas.tabular.table import Table
from bmnas.tasks import check_task, check_test
from bmnas.tasks.columns import read_npz
from bmnas.tasks.task import Task

#: Networks in a batch, at most: with more, what a step works on no longer stays in the caches.
GROUP = 16

_CPU = Runtime(torch.device("cpu"), compile=False)
_PARTS = ("validation", "test", "validation_loss", "test_loss")


@dataclass(frozen=True)
class _Job:
    """Networks of one structure, by their numbers in the table, trained with one seed."""

    name: str
    entries: tuple[int, ...]
    seed: int


def build_table(
    task: Task,
    out: Path,
    *,
    config: Config,
    run: Path,
    seed: int = 0,
    seeds: int = 3,
    backbones: Path | None = None,
    progress: Progress | None = None,
) -> Table:
    """Train every network of the space of ``config.search`` on ``task`` and write ``out``.

    ``run`` is the folder of what is done so far, ``backbones`` that of trained backbones, by
    default inside it. Backbones are trained with ``seed``, networks with ``seeds`` seeds from it
    on. Test data is read to be put into the table. All but measured times is the same, bit for
    bit, when it is built again on the same machine with as many threads. Raises UserError when
    something given cannot be used.
    """
    check_seed(seed)
    if seeds < 1:
        raise UserError(f"--seeds: received {seeds}, expected 1 or more")
    if out.suffix != ".npz":
        raise UserError(f"{out}: received a name that ends otherwise, expected one in .npz")
    check_task(task)
    check_test(task)
    progress = Silent() if progress is None else progress
    kept = run / "backbones" if backbones is None else backbones
    with locked(run, kept):
        objective = BatchedObjective(task.kind, config.train.threshold)
        cache, unimodal = _features(task, config, objective, seed, run, kept, progress)
        space = _space(cache, config.search)
        genotypes = tuple(space.distinct().values())
        about = {
            "task": {"name": task.name, "source": task.source},
            "metric": objective.metric,
            "features": list(cache.names),
            "classes": task.classes,
            "samples": {part: len(task.samples(part)) for part in cache.parts},
            "seed": seed,
            "seeds": seeds,
            "preset": config.preset,
            **config.to_dict(),
            "unimodal_validation": unimodal,
        }
        _claim(run, about, cache)
        builder = _Builder(genotypes, cache, objective, config.search, run / "parts", progress)
        arrays = builder.arrays(range(seed, seed + seeds))
        about.update(versions=versions(), hardware=hardware())
        table = Table(about, genotypes, arrays)
        table.save(out)
    return table


@dataclass(frozen=True)
class _Builder:
    genotypes: Sequence[Genotype]
    cache: FeatureCache
    objective: BatchedObjective
    config: SearchConfig
    parts: Path
    progress: Progress

    def arrays(self, seeds: range) -> dict[str, NDArray[Any]]:
        """Train what is not trained yet; return the arrays of the table."""
        jobs = _jobs(self.genotypes, seeds)
        shape = len(self.genotypes), len(seeds)
        arrays: dict[str, NDArray[Any]] = {name: np.empty(shape) for name in _PARTS}
        seconds = np.empty(shape)
        with self.progress.stage("networks", sum(len(job.entries) for job in jobs)) as shown:
            for job in jobs:
                found = self._part(job)
                place = list(job.entries), seeds.index(job.seed)
                for name in _PARTS:
                    arrays[name][place] = found[name]
                seconds[place] = found["seconds"]
                shown.advance(len(job.entries))
                shown.message(f"best validation {found['validation'].max():.3f}")
        arrays["seconds"] = seconds.mean(axis=1)
        arrays["parameters"], arrays["latency_ms"] = self._costs()
        return arrays

    def _part(self, job: _Job) -> Mapping[str, NDArray[Any]]:
        path = self.parts / f"{job.name}.npz"
        if not path.exists():
            found = self._train(job)
            with atomic_path(path) as aside, aside.open("wb") as file:
                np.savez(file, **found)  # type: ignore[arg-type]
        return _read_part(path, len(job.entries))

    def _train(self, job: _Job) -> dict[str, NDArray[Any]]:
        started = time.perf_counter()
        config, genotypes = self.config, [self.genotypes[n] for n in job.entries]
        seed_stage(job.seed, f"tabular {job.name}")
        network = BatchedNetwork(genotypes, [self._network(genotype) for genotype in genotypes])
        train = self.cache.samples("train").select(network.features)
        fit(
            network,
            network,
            [Group(list(network.parameters()), config.max_lr)],
            train,
            self.objective,
            Recipe(config.candidate_epochs, config.batch_size, config.min_lr, config.weight_decay),
            device=_CPU.device,
            checkpoint=None,
            progress=Silent(),
            stage=f"batch {job.name}",
        )
        seconds = (time.perf_counter() - started) / len(genotypes)
        found: dict[str, NDArray[Any]] = {"seconds": np.full(len(genotypes), seconds)}
        for part in ("validation", "test"):
            samples = self.cache.samples(part).select(network.features)
            logits = evaluate(network, network, samples, self.objective, _CPU.device).logits
            found[part] = np.array(self.objective.scores(logits, samples.labels))
            found[f"{part}_loss"] = np.array(self.objective.losses(logits, samples.labels))
        return found

    def _network(self, genotype: Genotype) -> FusionNetwork:
        channels = {name: array.shape[-1] for name, array in self.cache.arrays.items()}
        classes, dropout = self.cache.task.classes, self.config.dropout
        return FusionNetwork(genotype, channels, classes=classes, dropout=dropout)

    def _costs(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return parameters and milliseconds of every entry's fusion network."""
        parameters, latency = [], []
        with self.progress.stage("latency", len(self.genotypes)) as shown:
            for genotype in self.genotypes:
                network = self._network(genotype).eval()
                parameters.append(count_parameters(network) - count_parameters(network.classifier))
                samples = self.cache.samples("validation").select(network.features)
                pooled, _ = samples.batch(torch.arange(1))
                latency.append(_milliseconds(network, pooled))
                shown.advance()
        return np.array(parameters, dtype=np.int64), np.array(latency)


def _milliseconds(network: FusionNetwork, pooled: list[torch.Tensor]) -> float:
    def call() -> None:
        with torch.inference_mode():
            network(pooled)

    return measure_latency(call, repeats=50).median_ms


def _features(
    task: Task,
    config: Config,
    objective: Objective,
    seed: int,
    run: Path,
    kept: Path,
    progress: Progress,
) -> tuple[FeatureCache, dict[str, float]]:
    """Return the features of all parts, and the validation score of each modality alone."""
    networks = unimodal_networks(
        task,
        config.unimodal,
        Objective(objective.kind, objective.threshold),
        seed=seed,
        folder=kept,
        runtime=_CPU,
        progress=progress,
    )
    cache = open_features(
        task,
        {name: found.backbone for name, found in networks.items()},
        parts=("train", "validation", "test"),
        length=config.search.length,
        # Not beside the backbones: the cache of a search there holds no test data.
        folder=run / "features",
        device=_CPU.device,
        progress=progress,
        dtype=config.search.cache_dtype,
    )
    return cache, {name: found.validation for name, found in networks.items()}


def _space(cache: FeatureCache, config: SearchConfig) -> Space:
    return Space(cache.names, config.cells, config.steps, config.channels, config.length)


def _jobs(genotypes: Sequence[Genotype], seeds: range) -> list[_Job]:
    """Return the batches: the entries of each structure in equal shares of at most ``GROUP``."""
    groups: dict[object, list[int]] = defaultdict(list)
    for number, genotype in enumerate(genotypes):
        groups[structure(genotype)[0]].append(number)
    jobs = []
    for entries in groups.values():
        for share in np.array_split(entries, -(-len(entries) // GROUP)):
            for seed in seeds:
                jobs.append(_Job(f"{share[0]:06d}-{seed}", tuple(map(int, share)), seed))
    return jobs


def _claim(run: Path, about: Mapping[str, Any], cache: FeatureCache) -> None:
    """Take ``run`` for a table; raises UserError when it holds parts of another one."""
    labels = cache.samples(*cache.parts).labels
    depends = {
        "about": {name: value for name, value in about.items() if name not in ("seeds", "preset")},
        "features": cache.keys,
        "labels": hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
    }
    text = json.dumps(depends, sort_keys=True)
    owner = hashlib.sha256(text.encode()).hexdigest()
    path = run / "tabular.json"
    if not path.exists():
        write_json(path, {"owner": owner, "about": about})
    found = read_json(path)
    if not isinstance(found, dict) or found.get("owner") != owner:
        raise UserError(
            f"{run}: holds parts of a table of other settings, backbones or data; choose another "
            "folder with --run, or delete this one"
        )


def _read_part(path: Path, count: int) -> Mapping[str, NDArray[Any]]:
    try:
        found = read_npz(path, (*_PARTS, "seconds"))
    except UserError as error:
        raise UserError(f"{error}; delete this file, its networks will be trained again") from error
    if any(array.shape != (count,) for array in found.values()):
        raise UserError(f"{path}: expected {count} networks; delete this file")
    return found
