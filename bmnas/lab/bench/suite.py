"""What a suite runs, as a TOML file says it: tasks, strategies, hand-made fusions, seeds."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

from bmnas.lab.jobs.job import SEARCHED
from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_toml
from bmnas.machine.schema import NotEmpty, OneOf, Range, read
from bmnas.spaces.cells.known import FUSION_MODULES
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.strategies import STRATEGIES

PAIRS = ("found", "late", "random")


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
class SuiteTable:
    """A file of ``bmnas tabular build``, and one of benchmarks.search_quality on it, None without.

    On the table searches are replayed, for the report's figure of regrets.
    """

    file: str
    searches: str | None = None


@dataclass(frozen=True)
class Suite:
    """Ways to fuse, each run on every ``task`` for ``seeds`` seeds from 0.

    ``modules`` are known modules of the pool, or ``searched``, on each of ``pairs`` of features.
    The file's tables ``[[task]]`` and ``[[table]]`` give the attributes their names.
    """

    task: Annotated[tuple[SuiteTask, ...], NotEmpty()]
    strategies: tuple[Annotated[str, OneOf(STRATEGIES)], ...]
    fusions: tuple[Annotated[str, OneOf(FUSIONS)], ...] = ()
    modules: tuple[Annotated[str, OneOf((*FUSION_MODULES, SEARCHED))], ...] = ()
    pairs: tuple[Annotated[str, OneOf(PAIRS)], ...] = ()
    table: tuple[SuiteTable, ...] = ()
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
    files = (resources.files("bmnas.lab.bench") / "suites").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_suite(source: str) -> Suite:
    """Return the suite of a name, or of a ``.toml`` file; raises UserError, one line."""
    path = Path(source)
    if not source.endswith(".toml"):
        names = suite_names()
        if source not in names:
            raise UserError(
                f"received suite {source!r}, expected {', '.join(names)}, or the path of a .toml "
                f"file{close(source, names)}"
            )
        path = Path(str(resources.files("bmnas.lab.bench") / "suites" / f"{source}.toml"))
    suite = read(Suite, read_toml(path), str(path))
    return dataclasses.replace(suite, name=suite.name or path.stem)
