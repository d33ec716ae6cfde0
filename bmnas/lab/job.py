"""One run of a sweep or a suite as plain data, and what a process does for it.

A job that was stopped goes on where it was the next time.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bmnas.lab.linear import fit_linear
from bmnas.machine.distributed import lock_folders
from bmnas.machine.files import atomic_folder, sha256_json
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config
from bmnas.pipeline.context import RunContext, worded
from bmnas.pipeline.robustness import measure_robustness
from bmnas.pipeline.run_folder import Run, best_cells
from bmnas.pipeline.search import search
from bmnas.pipeline.sequences import sequence_for
from bmnas.pipeline.train import train, train_fusion
from bmnas.pipeline.trained import load_network
from bmnas.pipeline.unimodal import folds_of, unimodal_networks
from bmnas.report.metrics import RunMetrics
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import (
    late_pairs,
    module_genotype,
    random_pairs,
    searched_cells,
)
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.mmnas.space import MMnasSpace
from bmnas.spaces.registry import space_named
from bmnas.spaces.space import SearchSpace
from bmnas.strategies import strategy_named
from bmnas.tasks import check_task, load_task
from bmnas.tasks.task import Task

Stage = Literal["search", "train", "export", "robustness"]
BACKBONES = "backbones"
#: A module: the Cells of the genotype that was found, on other pairs of features.
SEARCHED = "searched"
#: Strategies with other settings, by name: the recipe of a paper, ``start = even``.
VARIANTS = {"paper": "bmnas", "paper/mmnas": "mmnas", "even/mmnas": "mmnas"}
#: Linear models of raw inputs, no network.
LINEAR = "linear"

#: A job, the folder that its run folder lies in, and the device: JSON for the process that does it.
Order = Mapping[str, Any]

#: Writes the bundle of a trained network into its run folder, and its latency into the metrics.
Export = Callable[[Path, Task], None]


@dataclass(frozen=True)
class Job:
    """One run of a sweep or a suite.

    ``name`` is its run folder inside the sweep's. ``way`` is ``search STRATEGY`` or
    ``search STRATEGY/SPACE``, one of ``VARIANTS`` in place of a strategy, ``fusion NAME``,
    ``module NAME/PAIRS``, ``sequence NAME``, ``linear``, or ``backbones``, which trains the
    backbones and extracts the features that other jobs share; ``caches`` are then the lengths and
    number types of the features.
    ``task`` holds the task's name and source, ``label`` what tells the job from others in a table.
    ``after`` is the name of the job whose genotype this one starts from. ``space`` is the name of
    the search space, None for the strategy's own.
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
    caches: tuple[tuple[int | None, str], ...] = ()

    @property
    def backbones(self) -> str:
        """The folder of the backbones that this job shares with others, inside the sweep's."""
        depends = [self.task["source"], self.seed, dataclasses.asdict(self.config.unimodal)]
        if self.looked_in.READS_TOKENS:
            depends.append("tokens")  # see ``worded``
        digest = sha256_json(depends)
        return f".{BACKBONES}/{digest[:12]}"

    @property
    def strategy(self) -> str:
        """The strategy of a search."""
        return strategy_of_way(self.way)

    @property
    def looked_in(self) -> type[SearchSpace[Any]]:
        """The search space, that of Cells for fusions and modules."""
        return space_of_way(self.way, self.space)

    @property
    def length(self) -> int | None:
        """The length of the features that it reads; None of tokens."""
        return None if self.looked_in.READS_TOKENS else self.config.search.length

    def finished(self, folder: Path) -> bool:
        """Tell whether all stages are done in the run folder below ``folder``."""
        run = Run(folder / self.name)
        if self.stages[-1] == "search":
            return run.genotype.is_file()
        if self.stages[-1] == "train":
            return self.trained(folder)
        metrics = run.read_metrics()
        if self.stages[-1] == "robustness":
            return bool(metrics.robustness)
        # The latency in onnxruntime is noted last.
        return bool(metrics.latency.onnxruntime)

    def trained(self, folder: Path) -> bool:
        """Tell whether the run folder below ``folder`` has a trained network, or linear models."""
        if self.way == LINEAR:
            return Run(folder / self.name).read_metrics().test is not None
        return Run(folder / self.name).network.is_file()

    def order(self, folder: Path, device: str) -> Order:
        """Return what a process needs to know to do this job below ``folder``."""
        job = {**vars(self), "config": self.config.to_dict()}
        preset = self.config.preset
        return {"job": job, "preset": preset, "folder": str(folder), "device": device}


def space_of_way(way: str, space: str | None = None) -> type[SearchSpace[Any]]:
    """Return the space that a job looks in, which may name one itself."""
    kind, _, name = way.partition(" ")
    if kind == "sequence":
        space = MMnasSpace.NAME
    elif space is None and kind == "search":
        own = strategy_named(strategy_of_way(way)).SPACE
        space = own if name in VARIANTS else name.partition("/")[2] or own
    return space_named(space or CellSpace.NAME)


def strategy_of_way(way: str) -> str:
    """Return the strategy of a search, which may be one of ``VARIANTS``."""
    name = way.partition(" ")[2]
    return VARIANTS.get(name) or name.partition("/")[0]


def backbones_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Return a job for each set of backbones that ``jobs`` share."""
    groups: dict[str, list[Job]] = {}
    for job in (job for job in jobs if job.way != LINEAR):
        groups.setdefault(job.backbones, []).append(job)
    made = []
    for name, group in groups.items():
        caches = tuple(dict.fromkeys((j.length, j.config.search.cache_dtype) for j in group))
        space = group[0].looked_in.NAME
        job = dataclasses.replace(group[0], name=name, way=BACKBONES, caches=caches, space=space)
        made.append(job)
    return made


def do_order(order: Order, export: Export) -> None:
    """Do what ``order`` says; raises UserError for a mistake of the user's."""
    config = Config.from_dict(order["job"]["config"], order["job"]["name"])
    config = dataclasses.replace(config, preset=order["preset"])
    job = Job(**{**order["job"], "config": config})
    folder, runtime = Path(order["folder"]), Runtime.choose(order["device"])
    source = job.task["source"]
    data = source.get("data")
    task = load_task(source["task"], None if data is None else Path(data))
    if job.way == BACKBONES:
        _make_backbones(job, task, folder / job.backbones, runtime)
    elif job.way == LINEAR:
        fit_linear(RunContext(Run(folder / job.name), task, job.config, job.seed, runtime=runtime))
    else:
        _do_stages(job, task, folder, runtime, export)


def _make_backbones(job: Job, task: Task, folder: Path, runtime: Runtime) -> None:
    check_task(task)
    run, task = Run(folder.parent), worded(task, job.looked_in)
    context = RunContext(run, task, job.config, job.seed, backbones=folder, runtime=runtime)
    with lock_folders(folder):
        networks = unimodal_networks(context)
        backbones = {name: found.backbone for name, found in networks.items()}
        for length, dtype in job.caches:
            # By the same folds as the stages, or they would find nothing in the cache.
            folds = folds_of(networks)
            context.features(backbones, ("train", "validation"), length, dtype=dtype, folds=folds)


def _do_stages(job: Job, task: Task, folder: Path, runtime: Runtime, export: Export) -> None:
    run, (kind, _, name) = Run(folder / job.name), job.way.partition(" ")
    if not run.backbones.exists():
        # Not the shared folder itself: a run locks its backbones, and jobs run side by side.
        with atomic_folder(run.backbones) as aside:
            hidden = shutil.ignore_patterns(".*")
            shared = folder / job.backbones
            shutil.copytree(shared, aside, ignore=hidden, copy_function=_link, dirs_exist_ok=True)
    options: dict[str, Any] = {
        "run": run.path,
        "config": job.config,
        "seed": job.seed,
        "existing": "resume",
        "runtime": runtime,
    }
    if kind == "search":
        search(task, strategy=job.strategy, space=job.space, **options)
    elif kind == "module" and not run.genotype.is_file():
        assert job.after is not None
        found = best_cells(Run(folder / job.after).genotype)
        _module(name, found, job.config, job.seed).save(run.genotype)
    elif kind == "sequence" and not run.genotype.is_file():
        sequence_for(task, job.config, name).save(run.genotype)
    if "train" in job.stages:
        if kind == "fusion":
            train_fusion(name, task, **options)
        else:
            train(run.genotype, task, **options)
    # What a killed process, or a suite that now wants more, left is not measured again.
    if "export" in job.stages and not run.read_metrics().latency.onnxruntime:
        export(run.path, task)
    if "robustness" in job.stages:
        with lock_folders(run.path):
            trained = load_network(run.network, task)
            run.update_metrics(RunMetrics(robustness=measure_robustness(trained, task, runtime)))


def _module(name: str, found: Genotype, config: Config, seed: int) -> Genotype:
    """Return the genotype of ``MODULE/PAIRS``: a known module on some pairs of features."""
    module, _, kind = name.partition("/")
    if kind == "late":
        pairs = late_pairs(found.features)
    elif kind == "random":
        pairs = random_pairs(found.features, config.search.cells, seed)
    else:
        pairs = [cell.inputs for cell in found.cells]
    if module == SEARCHED:
        return searched_cells(found, pairs, pairs_name=kind)
    shape = {"channels": config.search.channels, "length": config.search.length}
    return module_genotype(module, pairs, found.features, **shape, pairs_name=kind)


def _link(path: str, copy: str) -> None:
    try:
        os.link(path, copy)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(path, copy)
