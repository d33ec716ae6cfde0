"""The runs of a suite, one after another; what is there already is not done again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bmnas.lab.bench.suite import SEARCHED, Suite, SuiteTask
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config, load_preset
from bmnas.pipeline.fusion import train_fusion
from bmnas.pipeline.run_folder import Run, differing
from bmnas.pipeline.search import search
from bmnas.pipeline.train import train
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.fusions.genotypes import (
    late_pairs,
    module_genotype,
    random_pairs,
    searched_cells,
    searched_pairs,
)
from bmnas.tasks import load_task
from bmnas.tasks.task import Task

#: Writes the bundle of a trained network into its run folder, and its latency into the metrics.
Export = Callable[[Path, Task], None]


@dataclass(frozen=True)
class Job:
    """One way to fuse on one task with one seed: its run folder, and what is done in it.

    ``way`` is ``search NAME``, ``fusion NAME`` or ``module NAME/PAIRS``.
    """

    task: SuiteTask
    seed: int
    way: str
    run: Path

    @property
    def shared(self) -> Path:
        """The folder of the backbones and features of this task and seed."""
        return self.run.parent / "backbones"

    @property
    def found(self) -> Path:
        """The genotype of the first strategy, for this task and seed."""
        return self.run.parent / "search-bmnas" / "genotype.json"

    def commands(self) -> list[str]:
        """Return the commands that do the same; a genotype made here lies in the run folder."""
        kind, _, name = self.way.partition(" ")
        task: dict[str, Any] = {"task": self.task.name}
        if self.task.data is not None:
            given = Path(self.task.data)
            task["data"] = given if given.is_absolute() else f"$BMNAS_DATA/{given}"
        options = {**task, "run": self.run, "backbones": self.shared, "seed": self.seed}
        preset = {} if self.task.preset is None else {"preset": self.task.preset}
        genotype = {"genotype": self.run / "genotype.json"}
        if kind == "search":
            strategy = {} if name == "bmnas" else {"strategy": name}
            made = [
                _command("search", {**options, **preset, **strategy}),
                _command("train", genotype),
            ]
        elif kind == "fusion":
            made = [_command("train", {"fusion": name, **options, **preset})]
        else:
            made = [_command("train", {**genotype, **options, **preset})]
        return [*made, _command("export", {"run": self.run})]


def jobs_of(suite: Suite, folder: Path) -> list[Job]:
    """Return the jobs of ``suite`` in the order in which they are done."""
    modules = [f"module {name}/{pairs}" for name in suite.modules for pairs in suite.pairs]
    # The searched Cells on the pairs that they were found with are the search itself.
    modules = [way for way in modules if way != f"module {SEARCHED}/found"]
    ways = [
        *(f"search {name}" for name in suite.strategies),
        *(f"fusion {name}" for name in suite.fusions),
        *modules,
    ]
    return [
        Job(task, seed, way, folder / task.slug / str(seed) / _slug(way))
        for task in suite.tasks
        for seed in range(suite.seeds)
        for way in ways
    ]


def run_jobs(jobs: list[Job], runtime: Runtime, export: Export, progress: Progress) -> None:
    """Do all ``jobs``; one that was stopped goes on, one that is done is left as it is.

    Raises UserError before the first one where a task cannot be loaded, or a run was made with
    other settings.
    """
    for task in dict.fromkeys(job.task for job in jobs):
        _Work(task, runtime, progress).check([job for job in jobs if job.task == task])
    work: _Work | None = None
    for number, job in enumerate(jobs, start=1):
        if work is None or work.of != job.task:
            work = _Work(job.task, runtime, progress)
        if not _measured(job):
            progress.note(f"{number} of {len(jobs)}: {job.task.name}, seed {job.seed}: {job.way}")
            work.do(job, export)


@dataclass(frozen=True)
class _Work:
    of: SuiteTask
    runtime: Runtime
    progress: Progress

    @cached_property
    def task(self) -> Task:
        return load_task(self.of.name, self.of.folder)

    @cached_property
    def config(self) -> Config:
        return load_preset(self.of.preset or self.task.preset)

    def check(self, jobs: list[Job]) -> None:
        """Load the task; raise UserError where the run of a job was made with other settings."""
        wanted = {"task": {"name": self.task.name, "source": self.task.source}}
        wanted |= self.config.to_dict()
        for job in jobs:
            run, own = Run(job.run), job.way.removeprefix("search ")
            keys = ("task", "unimodal", "search", "train", *([own] if own in wanted else []))
            what = differing(run, wanted, keys) if run.config.is_file() else None
            if what is not None:
                raise UserError(
                    f"{run.path}: holds a run with {what}; choose another folder with --out"
                )

    def do(self, job: Job, export: Export) -> None:
        kind, _, name = job.way.partition(" ")
        options: dict[str, Any] = {
            "config": self.config,
            "seed": job.seed,
            "run": job.run,
            "backbones": job.shared,
            "existing": "resume",
            "runtime": self.runtime,
            "progress": self.progress,
        }
        if kind == "fusion":
            train_fusion(name, self.task, **options)
        else:
            if kind == "search":
                search(self.task, strategy=name, **options)
            elif not Run(job.run).genotype.is_file():
                job.run.mkdir(parents=True, exist_ok=True)
                self._genotype(name, job).save(Run(job.run).genotype)
            train(Run(job.run).genotype, self.task, **options)
        export(job.run, self.task)

    def _genotype(self, name: str, job: Job) -> Genotype:
        """Return the genotype of a module on some pairs of features."""
        module, _, kind = name.partition("/")
        found, settings = Genotype.load(job.found), self.config.search
        if kind == "late":
            pairs = late_pairs(found.features)
        elif kind == "random":
            pairs = random_pairs(found.features, settings.cells, job.seed)
        else:
            pairs = searched_pairs(found)
        if module == SEARCHED:
            return searched_cells(found, pairs, pairs_name=kind)
        shape = {"channels": settings.channels, "length": settings.length}
        return module_genotype(module, pairs, found.features, **shape, pairs_name=kind)


def _command(name: str, options: dict[str, Any]) -> str:
    words = (f"--{key} {_quoted(str(value))}" for key, value in options.items())
    return " ".join([f"bmnas {name}", *words])


def _quoted(word: str) -> str:
    # The shell is to see the name of the variable.
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)


def _slug(way: str) -> str:
    return way.replace(" ", "-").replace("/", "-")


def done(jobs: list[Job]) -> Iterator[Job]:
    """Yield the jobs whose networks are trained."""
    return (job for job in jobs if Run(job.run).network.is_file())


def _measured(job: Job) -> bool:
    """Tell whether all of ``job`` is done: the latency in onnxruntime is noted last."""
    run = Run(job.run)
    return run.metrics.is_file() and "onnxruntime" in run.read_metrics().get("latency", {})
