"""Building a table: every network of a space trained for a short fixed budget.

The networks of a structure are trained together, each as a candidate of a search is
(``strategies.candidates``): the same epochs, batch size, learning rates and dropout, from cached
features of frozen backbones. A group's results are a file of their own, so that a build that was
stopped, in whatever way, goes on where it was.

Legend: G networks of a group.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bmnas.features.cache import FeatureCache
from bmnas.features.samples import FeatureSamples
from bmnas.lab.tables import BY_SEED, Table
from bmnas.machine.costs import count_parameters, hardware, measure_latency, versions
from bmnas.machine.distributed import lock_folders
from bmnas.machine.errors import UserError
from bmnas.machine.files import (
    atomic_path,
    remove_leftovers,
    sha256_json,
)
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime, check_seed, one_thread, seed_stage, worker_pool
from bmnas.pipeline.config import Config
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.cells.operations import added_operations, operation_names, register_all
from bmnas.spaces.cells.space import CellSpace
from bmnas.strategies.settings import SearchConfig
from bmnas.tasks import check_task, check_test
from bmnas.tasks.columns import read_npz
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Part, Task
from bmnas.training.heads import TaskHead, head_for, head_of
from bmnas.training.together import evaluate_together, fit_together, joined

#: Networks in a group, at most: with more, what a step works on no longer stays in the caches.
GROUP = 16

_CPU = Runtime(torch.device("cpu"), compile=False)


def build_table(
    task: Task,
    out: Path,
    *,
    config: Config,
    run: Path,
    seed: int = 0,
    seeds: int = 3,
    backbones: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Table:
    """Train every network of the space of ``config.search`` on ``task`` and write ``out``.

    ``run`` is the folder of what is done so far, ``backbones`` that of trained backbones, by
    default inside it. Backbones are trained with ``seed``, networks with ``seeds`` seeds from it
    on, in ``workers`` processes of one thread. Test data is read to be put into the table. All but
    measured times is the same, bit for bit, when it is built again on the same machine, whatever
    the number of workers. Raises UserError when something given cannot be used.
    """
    check_seed(seed)
    for name, value in (("seeds", seeds), ("workers", workers)):
        if value < 1:
            raise UserError(f"--{name}: received {value}, expected 1 or more")
    if out.suffix != ".npz":
        raise UserError(f"{out}: received a name that ends otherwise, expected one in .npz")
    _check(task)
    progress = Progress() if progress is None else progress
    context = RunContext(
        Run(run), task, config, seed, backbones=backbones, runtime=_CPU, progress=progress
    )
    with lock_folders(run, context.kept):
        networks = unimodal_networks(context)
        cache = context.features(
            {name: found.backbone for name, found in networks.items()},
            ("train", "validation", "test"),
            config.search.length,
            # Not beside the backbones: the cache of a search there holds no test data.
            folder=run / "features",
        )
        about = _about(context, cache)
        about["unimodal_validation"] = {n: found.validation for n, found in networks.items()}
        # Networks of other settings may lie beside them.
        parts = run / "parts" / _fingerprint(about, cache)[:16]
        remove_leftovers(parts)
        work = Work.of(cache, config, parts)
        arrays = _scores(work, range(seed, seed + seeds), workers, progress)
        arrays.update(_costs(work, progress))
        # The hardware's number of threads is that of the latency.
        about.update(seeds=seeds, versions=versions(), hardware=hardware())
        table = Table(about, tuple(work.genotypes), arrays)
        table.save(out)
    return table


def _check(task: Task) -> None:
    check_task(task)
    if not task_kind(task.kind).ALONE:
        raise UserError(f"task {task.name}: received kind {task.kind}, which tables do not have")
    check_test(task)


def _about(context: RunContext, cache: FeatureCache) -> dict[str, Any]:
    """Return what a table is of, without the folders of this machine: it is passed on."""
    task, config = context.task, context.config
    source = {k: Path(v).name for k, v in task.source.items() if k == "task"}
    return {
        "task": {"name": task.name, "source": source},
        "metric": head_for(task.kind).metric,
        "features": list(cache.names),
        "classes": task.classes,
        "samples": {part: len(task.samples(part)) for part in cache.parts},
        "seed": context.seed,
        "preset": None if config.preset is None else Path(config.preset).name,
        **config.to_dict(),
    }


def _scores(work: Work, seeds: range, workers: int, progress: Progress) -> dict[str, NDArray[Any]]:
    """Train what is not trained yet; return scores, losses and seconds of all networks.

    A single worker is this process. Raises UserError when a loss is no longer finite, and when a
    process was killed.
    """
    groups = network_groups(work.genotypes, seeds)
    left = [group for group in groups if not work.part(group).exists()]
    with progress.stage("networks", sum(len(group.entries) for group in groups)) as shown:
        shown.advance(sum(len(group.entries) for group in groups if group not in left))
        if workers == 1:
            with one_thread():
                for group in left:
                    shown.advance(work.write_part(group))
        else:
            with worker_pool(workers, register_all, added_operations()) as pool:
                for future in as_completed(pool.submit(work.write_part, group) for group in left):
                    shown.advance(future.result())
    shape = len(work.genotypes), len(seeds)
    arrays = {name: np.empty(shape) for name in (*BY_SEED, "seconds")}
    for group in groups:
        for name, values in work.read_part(group).items():
            arrays[name][list(group.entries), seeds.index(group.seed)] = values
    arrays["seconds"] = arrays["seconds"].mean(axis=1)
    return arrays


def _costs(work: Work, progress: Progress) -> dict[str, NDArray[Any]]:
    """Return parameters and milliseconds of every network."""
    samples = work.samples["validation"]
    parameters, latency = [], []
    with progress.stage("latency", len(work.genotypes)) as shown:
        for genotype in work.genotypes:
            network = work.network(genotype).eval()
            parameters.append(count_parameters(network) - count_parameters(network.classifier))
            pooled = samples.select(network.features).batch(torch.arange(1)).inputs
            call = torch.inference_mode()(functools.partial(network, pooled))
            latency.append(measure_latency(call, repeats=50).median_ms)
            shown.advance()
    return {"parameters": np.array(parameters, dtype=np.int64), "latency_ms": np.array(latency)}


def _fingerprint(about: Mapping[str, Any], cache: FeatureCache) -> str:
    """Return a digest of all that the result of a group depends on."""
    labels = cache.samples(*cache.parts).labels
    depends = {
        "about": {name: value for name, value in about.items() if name != "preset"},
        "features": cache.keys,
        "operations": operation_names(),
        "labels": hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
    }
    return sha256_json(depends)


@dataclass(frozen=True)
class NetworkGroup:
    """Networks by their numbers in the table, to be trained together with one seed."""

    name: str
    entries: tuple[int, ...]
    seed: int


def network_groups(genotypes: Sequence[Genotype], seeds: range) -> list[NetworkGroup]:
    """Return groups of equal size, at most ``GROUP``, of networks with the same steps if any."""
    steps = [[cell.steps for cell in genotype.cells] for genotype in genotypes]
    # Networks with the same steps do all of their work together.
    alike = sorted(range(len(genotypes)), key=lambda n: repr(steps[n]))
    return [
        NetworkGroup(f"{share[0]:06d}-{seed}", tuple(map(int, share)), seed)
        for share in np.array_split(alike, -(-len(alike) // GROUP))
        for seed in seeds
    ]


@dataclass(frozen=True)
class Work:
    """What training needs; another process that is sent it maps the features by itself."""

    genotypes: Sequence[Genotype]
    samples: Mapping[Part, FeatureSamples]
    head: TaskHead
    config: SearchConfig
    classes: int
    parts: Path

    @classmethod
    def of(cls, cache: FeatureCache, config: Config, parts: Path) -> Work:
        """Return the work of a table on the features of ``cache``; ``parts`` is its folder."""
        task = cache.task
        return cls(
            genotypes=tuple(CellSpace.of(cache.names, asdict(config.search)).distinct().values()),
            samples={part: cache.samples(part) for part in cache.parts},
            head=head_of(task, config.train.threshold),
            config=config.search,
            classes=task.outputs,
            parts=parts,
        )

    def network(self, genotype: Genotype) -> FusionNetwork:
        """Return the fusion network of ``genotype`` with fresh weights."""
        channels, dropout = self.samples["train"].channels, self.config.dropout
        return FusionNetwork(genotype, channels, classes=self.classes, dropout=dropout)

    def part(self, group: NetworkGroup) -> Path:
        """Return the file of a group's results."""
        return self.parts / f"{group.name}.npz"

    def read_part(self, group: NetworkGroup) -> Mapping[str, NDArray[Any]]:
        """Return the arrays (G) of a group's file; raises UserError when it is damaged."""
        path, advice = self.part(group), "delete this file, its networks will be trained again"
        try:
            found = read_npz(path, (*BY_SEED, "seconds"))
        except UserError as error:
            raise UserError(f"{error}; {advice}") from error
        if any(array.shape != (len(group.entries),) for array in found.values()):
            raise UserError(f"{path}: received another number of networks; {advice}")
        return found

    def write_part(self, group: NetworkGroup) -> int:
        """Train a group and write its file, whole or not at all; return how many networks it has.

        Raises UserError when a loss is no longer finite.
        """
        found = self.train(group)
        with atomic_path(self.part(group)) as aside, aside.open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]
        return len(group.entries)

    def train(self, group: NetworkGroup) -> dict[str, NDArray[Any]]:
        """Train a group as candidates are; return the arrays (G) of its file.

        A network's results depend on itself and the seed, beyond rounding on nothing else.
        """
        started = time.perf_counter()
        config, device = self.config, _CPU.device
        networks = []
        for number in group.entries:
            seed_stage(group.seed, f"tabular {number}")
            networks.append(self.network(self.genotypes[number]))
        seed_stage(group.seed, "tabular batches")
        together = joined(networks, self.samples["train"], config.batch_size, device)
        validation = fit_together(
            together,
            self.samples["train"],
            self.samples["validation"],
            self.head,
            config.short_training,
            device=device,
            stage=f"group {group.name}",
        )
        seconds = (time.perf_counter() - started) / len(networks)
        test = evaluate_together(together, self.samples["test"], self.head, device)
        return {
            "seconds": np.full(len(networks), seconds),
            "validation": np.array([own.best.score for own in validation]),
            "validation_loss": np.array([own.best.loss for own in validation]),
            "test": np.array([own.score for own in test]),
            "test_loss": np.array([own.loss for own in test]),
        }
