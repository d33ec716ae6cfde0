"""What a sweep tries: a grid, a list, or both, as a TOML file and options say it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmnas.lab.job import Job, space_of_way
from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_toml
from bmnas.machine.schema import received
from bmnas.pipeline.config import Config, config_for
from bmnas.strategies import STRATEGIES, check_settings, strategy_named
from bmnas.tasks import load_task
from bmnas.tasks.task import Task

#: Settings that are no configuration values, with their types.
_PLAIN: Mapping[str, type] = {
    **dict.fromkeys(("task", "data", "preset", "strategy", "space"), str),
    "seed": int,
}
_DEFAULTS: Mapping[str, Any] = {"task": "digits", "strategy": "bmnas", "seed": 0}
_LONGEST = 100  # of a folder's name
_MOST = 10_000  # runs: more is a slip of the pen

Settings = dict[str, Any]
_Named = tuple[str | None, Settings]  # a run's own name, and what it varies


@dataclass(frozen=True)
class Setup:
    """One run of a sweep: its folder's name, what is varied, and all that was set.

    Keys are ``task``, ``data``, ``preset``, ``strategy``, ``space``, ``seed``, and configuration
    values by section, such as ``search.channels``.
    """

    name: str
    varied: Mapping[str, Any]
    settings: Mapping[str, Any]

    def config(self, task: Task) -> Config:
        """Return the configuration on top of the run's own preset, else of what suits ``task``.

        Raises UserError that lists every unknown name and every value out of range.
        """
        looked_in = space_of_way(f"search {self.settings['strategy']}", self.settings.get("space"))
        base = config_for(task, self.settings.get("preset"), looked_in)
        sections = base.to_dict()
        for key, value in self.settings.items():
            section, _, name = key.partition(".")
            if name:
                sections[section][name] = value
        config = Config.from_dict(sections, f"trial {self.name}")
        return dataclasses.replace(config, preset=base.preset)


def sweep_jobs(setups: Sequence[Setup], *, train: bool) -> list[Job]:
    """Return the jobs of a sweep; ``train``: what is found is trained and tested too.

    Raises UserError for a task or settings that cannot be used.
    """
    load = functools.cache(load_task)
    jobs = []
    for setup in setups:
        settings = setup.settings
        _require_read(setup, train)
        data = settings.get("data")
        task = load(settings["task"], None if data is None else Path(data))
        job = Job(
            setup.name,
            f"search {settings['strategy']}",
            {"name": task.name, "source": task.source},
            settings["seed"],
            setup.config(task),
            setup.varied,
            ("search", "train") if train else ("search",),
            space=settings.get("space"),
        )
        jobs.append(job)
    return jobs


def _require_read(setup: Setup, train: bool) -> None:
    """Raise UserError for varied settings that change nothing: two runs would be the same.

    And for a strategy or space that is not there.
    """
    strategy, space = setup.settings["strategy"], setup.settings.get("space")
    strategy_named(strategy).check_space(space)
    sections = {key: key.partition(".")[0] for key in setup.varied}
    searched = [key.removeprefix("search.") for key, name in sections.items() if name == "search"]
    # The features are as long as section [search] says, whatever becomes of them.
    check_settings(strategy, space, [name for name in searched if name != "length"])
    others = {*STRATEGIES, *(() if train else ("train",))} - {strategy}
    # The threshold decides which genotype of a multilabel task is kept.
    useless = [k for k, name in sections.items() if name in others and k != "train.threshold"]
    if useless:
        raise UserError(
            f"trial {setup.name}: received {', '.join(useless)}, which strategy {strategy} does "
            "not read; leave it out (values of [train] count with --train)"
        )


def read_sweep(path: Path | None, given: Mapping[str, Any], grid: Sequence[str]) -> list[Setup]:
    """Return the runs of the file ``path`` with the options ``given`` over its settings.

    ``grid`` holds texts ``KEY=VALUE,VALUE…``, each another axis of the grid. Raises UserError for
    what cannot be understood.
    """
    base, axes, runs = ({}, {}, []) if path is None else _read(path)
    base |= {key: value for key, value in given.items() if value is not None}
    for text in grid:
        axes |= _axis(text)
    count = (math.prod(map(len, axes.values())) if axes or not runs else 0) + len(runs)
    if count > _MOST:
        raise UserError(f"received a sweep of {count:,} runs, expected at most {_MOST:,}")
    if axes or not runs:
        chosen = itertools.product(*axes.values())
        runs = [(None, dict(zip(axes, values, strict=True))) for values in chosen] + runs
    names = _names(runs)
    return [
        Setup(name, varied, {**_DEFAULTS, **base, **varied})
        for name, (_, varied) in zip(names, runs, strict=True)
    ]


def _read(path: Path) -> tuple[Settings, dict[str, list[Any]], list[_Named]]:
    """Return the settings of all runs, the axes of the grid, and the runs that are listed."""
    content = read_toml(path)
    grid, listed = content.pop("grid", {}), content.pop("trial", [])
    if not isinstance(grid, Mapping):
        raise UserError(f"{path}: grid: {received(grid, 'a table [grid]')}")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise UserError(f"{path}: trial: {received(listed, 'tables [[trial]]')}")
    runs = []
    for number, entry in enumerate(listed, start=1):
        place = f"{path}: [[trial]] {number}"
        name = entry.pop("name", None)
        if name is not None and (not isinstance(name, str) or _slug(name) != name):
            raise UserError(f"{place}: name: {received(name, 'the name of a folder')}")
        runs.append((name, _settings(entry, place)))
    return _settings(content, str(path)), _settings(grid, f"{path}: [grid]", lists=True), runs


def _settings(table: Mapping[str, Any], place: str, *, lists: bool = False) -> Settings:
    """Return the settings with those of a section as ``section.name``, with ``lists`` of values.

    Raises UserError for an unknown one, and for a value of another type.
    """
    sections = Config().to_dict()
    flat: Settings = {}
    for key, value in table.items():
        inner = value if key in sections and isinstance(value, Mapping) else None
        flat |= {key: value} if inner is None else {f"{key}.{n}": v for n, v in inner.items()}
    known = [*_PLAIN, *(f"{name}.{key}" for name, table in sections.items() for key in table)]
    for key, value in flat.items():
        if key not in known:
            raise UserError(
                f"{place}: received {key!r}, expected {', '.join(_PLAIN)}, or a value of a preset "
                f"such as search.channels{close(key, known)}"
            )
        if lists and (not isinstance(value, list) or not value):
            raise UserError(f"{place} {key}: {received(value, 'a list of values')}")
        for one in value if lists else [value]:
            if key in _PLAIN and type(one) is not _PLAIN[key]:
                raise UserError(f"{place} {key}: {received(one, _PLAIN[key].__name__)}")
    return flat


def _axis(text: str) -> dict[str, list[Any]]:
    """Return the key with the values of ``KEY=VALUE,VALUE``."""
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not rest:
        raise UserError(f"--set: received {text!r}, expected KEY=VALUE,VALUE…")
    values = [_value(word.strip()) for word in rest.split(",")]
    return _settings({key: values}, "--set", lists=True)


def _value(word: str) -> Any:
    """Return what ``word`` is in JSON: a number, true, false, a text; else the word itself."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _names(runs: Sequence[_Named]) -> list[str]:
    """Return a folder name for each run, from what it varies where it was given none."""
    keys = list(dict.fromkeys(key for _, varied in runs for key in varied))
    last = [key.rpartition(".")[2] for key in keys]
    short = {k: end if last.count(end) == 1 else k for k, end in zip(keys, last, strict=True)}
    names = []
    for number, (given, varied) in enumerate(runs, start=1):
        words = [f"{short[key]}-{_text(value)}" for key, value in varied.items()]
        name = given or _slug("_".join(words)) or "trial"
        names.append(name if len(name) <= _LONGEST else f"{number}-{name[:_LONGEST]}")
        if names[-1] in names[:-1]:
            raise UserError(
                f"received two trials called {name}, expected different ones: vary something, or "
                "give each [[trial]] a name"
            )
    return names


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return Path(text).parent.name if text.endswith("task.toml") and "/" in text else text


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip("-.")
