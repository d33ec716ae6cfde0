"""What a suite runs, as a TOML file says it: tasks, strategies, hand-made fusions, seeds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_toml
from bmnas.pipeline.config import load_preset
from bmnas.spaces.cells.known import FUSION_MODULES
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.strategies import STRATEGIES

#: The Cells of what the first strategy found, on other pairs of features.
SEARCHED = "searched"
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
    """Ways to fuse, each run on every task for ``seeds`` seeds from 0.

    ``modules`` are known modules of the pool, or ``searched``, on each of ``pairs`` of features.
    """

    name: str
    tasks: tuple[SuiteTask, ...]
    seeds: int
    strategies: tuple[str, ...]
    fusions: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    tables: tuple[SuiteTable, ...] = ()


def suite_names() -> list[str]:
    """Return the names of the suites that come with bmnas."""
    files = (resources.files("bmnas.lab.bench") / "suites").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_suite(source: str) -> Suite:
    """Return the suite of a name, or of a ``.toml`` file; raises UserError, one line."""
    if source.endswith(".toml"):
        path = Path(source)
    else:
        names = suite_names()
        if source not in names:
            raise UserError(
                f"received suite {source!r}, expected {', '.join(names)}, or the path of a .toml "
                f"file{close(source, names)}"
            )
        path = Path(str(resources.files("bmnas.lab.bench") / "suites" / f"{source}.toml"))
    try:
        return _suite(path.stem, read_toml(path))
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(str(path)) else f"{path}: {said}") from error


def _suite(name: str, content: dict[str, Any]) -> Suite:
    known = ("seeds", "strategies", "fusions", "modules", "pairs", "task", "table")
    for key in content:
        if key not in known:
            raise UserError(f"received {key!r}, expected {', '.join(known)}{close(key, known)}")
    seeds = content.get("seeds", 3)
    if type(seeds) is not int or not 1 <= seeds <= 1000:
        raise UserError(f"seeds: received {seeds!r}, expected a number from 1 to 1000")
    allowed: Mapping[str, tuple[str, ...]] = {
        "strategies": tuple(STRATEGIES),
        "fusions": tuple(FUSIONS),
        "modules": (*FUSION_MODULES, SEARCHED),
        "pairs": PAIRS,
    }
    lists = {key: _names(content.get(key, []), key, names) for key, names in allowed.items()}
    # What the search finds is what the others are compared with, and gives its pairs and Cells.
    if lists["strategies"][:1] != ("bmnas",):
        raise UserError(
            f"strategies: received {list(lists['strategies'])}, expected bmnas in the first place"
        )
    if lists["modules"] and not lists["pairs"]:
        raise UserError(f"modules: received no pairs for them, expected {', '.join(PAIRS)}")
    tables = tuple(
        SuiteTable(**table)
        for table in _entries(content.get("table", []), "table", "file", ("searches",))
    )
    return Suite(name, _tasks(content.get("task", [])), seeds, **lists, tables=tables)


def _names(found: Any, key: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(found, list):
        raise UserError(f"{key}: received {found!r}, expected a list")
    for name in found:
        if name not in allowed:
            hint = close(str(name), list(allowed))
            raise UserError(f"{key}: received {name!r}, expected {', '.join(allowed)}{hint}")
    if len(set(found)) < len(found):
        raise UserError(f"{key}: received {found}, expected each once")
    return tuple(found)


def _entries(found: Any, kind: str, first: str, others: tuple[str, ...]) -> list[dict[str, str]]:
    """Return tables [[kind]] that have a text for ``first``, and perhaps for ``others``."""
    entries = found if isinstance(found, list) else [found]
    for number, entry in enumerate(entries, start=1):
        good = isinstance(entry, dict) and first in entry and set(entry) <= {first, *others}
        if not good or not all(isinstance(value, str) for value in entry.values()):
            raise UserError(
                f"[[{kind}]] {number}: received {str(entry)[:80]}, expected a text each for "
                f"{first} and, if wanted, {' and '.join(others)}"
            )
    return entries


def _tasks(found: Any) -> tuple[SuiteTask, ...]:
    if not isinstance(found, list) or not found:
        raise UserError("expected a table [[task]], which is missing")
    tasks: list[SuiteTask] = []
    for number, table in enumerate(_entries(found, "task", "name", ("data", "preset")), start=1):
        task = SuiteTask(**table)
        if task.preset is not None:
            load_preset(task.preset)
        if task.slug in [other.slug for other in tasks]:
            raise UserError(
                f"[[task]] {number}: received {task.name!r}, whose runs would lie in the folder "
                f"{task.slug} of another task, expected another name, or a suite of its own"
            )
        tasks.append(task)
    return tuple(tasks)
