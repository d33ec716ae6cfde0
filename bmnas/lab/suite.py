"""What a suite runs, as a TOML file says it, and the commands that do each run by itself."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from bmnas.lab.job import SEARCHED, Job
from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_toml
from bmnas.machine.schema import NotEmpty, OneOf, Range, read
from bmnas.pipeline.config import load_preset
from bmnas.spaces.cells.known import FUSION_MODULES
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.strategies import STRATEGIES
from bmnas.tasks import load_task, reloadable

PAIRS = ("found", "late", "random")
#: The strategy whose genotypes the known modules take their pairs of features from.
_FIRST = "search bmnas"


@dataclass(frozen=True)
class SuiteTask:
    """A task as for ``bmnas search --task``, its folder of data, and the preset, None the task's.

    ``data`` is looked for in the folder that ``BMNAS_DATA`` names, unless it is absolute.
    """

    name: str
    data: str | None = None
    preset: str | None = None

    @property
    def slug(self) -> str:
        """The name of the folder of its runs."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", self.name.removesuffix(".toml"))

    @property
    def folder(self) -> Path | None:
        """The folder of the task's data; None where the task knows it."""
        return None if self.data is None else Path(os.environ.get("BMNAS_DATA", "."), self.data)


@dataclass(frozen=True)
class Suite:
    """Ways to fuse, each run on every ``task`` for ``seeds`` seeds from 0.

    ``modules`` are known modules of the pool, or ``searched``, on each of ``pairs`` of features.
    The file's tables ``[[task]]`` give ``task`` its name.
    """

    task: Annotated[tuple[SuiteTask, ...], NotEmpty()]
    strategies: tuple[Annotated[str, OneOf(STRATEGIES)], ...]
    fusions: tuple[Annotated[str, OneOf(FUSIONS)], ...] = ()
    modules: tuple[Annotated[str, OneOf((*FUSION_MODULES, SEARCHED))], ...] = ()
    pairs: tuple[Annotated[str, OneOf(PAIRS)], ...] = ()
    seeds: Annotated[int, Range(1, 1000)] = 3
    name: str = ""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what does not fit together, by the name of the list."""
        # What the search finds is what the others are compared with, and gives its pairs and Cells.
        if self.strategies[:1] != ("bmnas",):
            yield "strategies", f"received {list(self.strategies)}, expected bmnas in first place"
        if self.modules and not self.pairs:
            yield "modules", f"received no pairs for them, expected some of {', '.join(PAIRS)}"
        for name in ("strategies", "fusions", "modules", "pairs"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                yield name, f"received {list(given)}, expected each once"
        slugs = [task.slug for task in self.task]
        for task in self.task:
            if slugs.count(task.slug) > 1:
                yield (
                    "task",
                    f"received {task.name!r}, whose runs would lie in the folder {task.slug} of "
                    "another task, expected another name, or a suite of its own",
                )

    def ways(self) -> list[str]:
        """Return the ways to fuse, as a job names them."""
        modules = [f"module {name}/{pairs}" for name in self.modules for pairs in self.pairs]
        return [
            *(f"search {name}" for name in self.strategies),
            *(f"fusion {name}" for name in self.fusions),
            # The searched Cells on the pairs that they were found with are the search itself.
            *(way for way in modules if way != f"module {SEARCHED}/found"),
        ]


def suite_names() -> list[str]:
    """Return the names of the suites that come with bmnas."""
    files = (resources.files("bmnas.lab") / "suites").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_suite(source: str, *, quick: bool = False) -> Suite:
    """Return the suite of a name, its ``quick`` form where wanted, or that of a ``.toml`` file.

    Raises UserError, one line.
    """
    path, wanted = Path(source), f"{source}-quick" if quick else source
    if quick or not source.endswith(".toml"):
        names = suite_names()
        if wanted not in names:
            have = [n.removesuffix("-quick") for n in names if n.endswith("-quick") or not quick]
            raise UserError(
                f"{'--quick: ' * quick}received suite {source!r}, expected {', '.join(have)}"
                f"{'' if quick else ', or the path of a .toml file'}{close(source, have)}"
            )
        path = Path(str(resources.files("bmnas.lab") / "suites" / f"{wanted}.toml"))
    suite = read(Suite, read_toml(path), str(path))
    return dataclasses.replace(suite, name=suite.name or path.stem)


def suite_jobs(suite: Suite) -> list[Job]:
    """Return the runs of ``suite``; raises UserError where a task or preset cannot be loaded."""
    return [
        job
        for task in suite.task
        for job in task_jobs(task, suite.ways(), seeds=range(suite.seeds))
    ]


def task_jobs(wanted: SuiteTask, ways: Sequence[str], *, seeds: Sequence[int]) -> list[Job]:
    """Return a run for each of ``seeds`` and ``ways`` to fuse on one task."""
    task = load_task(wanted.name, wanted.folder)
    config = load_preset(wanted.preset or task.preset)

    def folder(seed: int, way: str) -> str:
        return f"{wanted.slug}/{seed}/{way.replace(' ', '-').replace('/', '-')}"

    return [
        Job(
            folder(seed, way),
            way,
            {"name": task.name, "source": task.source},
            seed,
            config,
            {"task": wanted.name, "way": way, "seed": seed},
            ("search", "train", "export") if way.startswith("search ") else ("train", "export"),
            after=folder(seed, _FIRST) if way.startswith("module ") else None,
        )
        for seed in seeds
        for way in ways
    ]


def commands(job: Job, wanted: SuiteTask, folder: Path) -> list[str]:
    """Return the commands that do ``job`` below ``folder``.

    The genotype of a known module, which no command makes, lies in its run folder.
    """
    run, (kind, _, name) = folder / job.name, job.way.partition(" ")
    options: dict[str, Any] = {"task": wanted.name}
    if wanted.data is not None:
        given = Path(wanted.data)
        options["data"] = given if given.is_absolute() else f"$BMNAS_DATA/{given}"
    # A task of a module is named in every command: none is imported because a file says so.
    again = {} if reloadable(job.task["source"]) else dict(options)
    options |= {"run": run, "backbones": folder / job.backbones, "seed": job.seed}
    if wanted.preset is not None:
        options["preset"] = wanted.preset
    genotype = {"genotype": run / "genotype.json"}
    if kind == "search":
        strategy = {} if name == "bmnas" else {"strategy": name}
        made = [
            _command("search", {**options, **strategy}),
            _command("train", {**genotype, **again}),
        ]
    elif kind == "fusion":
        made = [_command("train", {"fusion": name, **options})]
    else:
        made = [_command("train", {**genotype, **options})]
    return [*made, _command("export", {"run": run} | again)]


def _command(name: str, options: dict[str, Any]) -> str:
    words = (f"--{key} {_quoted(str(value))}" for key, value in options.items())
    return " ".join([f"bmnas {name}", *words])


def _quoted(word: str) -> str:
    # The shell is to see the name of the variable.
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)
