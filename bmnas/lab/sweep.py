"""What a sweep tries: a grid, a list, or both, as a TOML file and options say it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmnas.lab.jobs.job import Job
from bmnas.machine.errors import UserError, close, one_line
from bmnas.machine.files import read_toml
from bmnas.machine.schema import received
from bmnas.pipeline.config import Config, load_preset
from bmnas.spaces.registry import space_named
from bmnas.strategies import strategy_named
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


@dataclass(frozen=True)
class Setup:
    """One run of a sweep: its folder's name, what is varied, and all that was set.

    Keys are ``task``, ``data``, ``preset``, ``strategy``, ``space``, ``seed``, and configuration
    values by section, such as ``search.channels``.
    """

    name: str
    varied: Mapping[str, Any]
    settings: Mapping[str, Any]

    def config(self, preset: str) -> Config:
        """Return the configuration on top of the run's own preset, else of the task's ``preset``.

        Raises UserError that lists every unknown name and every value out of range.
        """
        base = load_preset(self.settings.get("preset", preset))
        sections = base.to_dict()
        for key, value in self.settings.items():
            section, _, name = key.partition(".")
            if name:
                sections[section][name] = value
        config = Config.from_dict(sections, f"trial {self.name}")
        return dataclasses.replace(config, preset=base.preset)

    def job(self, task: Task, train: bool) -> Job:
        """Return the run as a job on ``task``; ``train``: what is found is trained and tested."""
        return Job(
            self.name,
            f"search {self.settings['strategy']}",
            {"name": task.name, "source": task.source},
            self.settings["seed"],
            self.config(task.preset),
            self.varied,
            ("search", "train") if train else ("search",),
            space=self.settings.get("space"),
        )


def sweep_jobs(setups: Sequence[Setup], *, train: bool) -> list[Job]:
    """Return the jobs of a sweep; raises UserError for a task or settings that cannot be used."""
    tasks: dict[tuple[str, str | None], Task] = {}
    jobs: list[Job] = []
    for setup in setups:
        name, data = setup.settings["task"], setup.settings.get("data")
        if (name, data) not in tasks:
            tasks[name, data] = load_task(name, None if data is None else Path(data))
        jobs.append(setup.job(tasks[name, data], train))
    _require_read(setups, jobs)
    return jobs


def _require_read(setups: Sequence[Setup], jobs: Sequence[Job]) -> None:
    """Raise UserError for a setting that changes nothing: runs called differently were the same."""
    unread = [_unread(job, setup.settings) for setup, job in zip(setups, jobs, strict=True)]
    for setup, keys in zip(setups, unread, strict=True):
        # What is set for all runs may be for some of them.
        useless = set.intersection(*unread) | keys & set(setup.varied)
        if useless:
            strategy = setup.settings["strategy"]
            raise UserError(
                f"trial {setup.name}: received {', '.join(sorted(useless))}, which strategy "
                f"{strategy} does not read; leave it out, or vary it in a [[trial]] of another "
                "strategy (values of [train] count with --train)"
            )


def _unread(job: Job, settings: Mapping[str, Any]) -> set[str]:
    """Return the keys of ``settings`` that ``job`` does not depend on.

    Raises UserError for a strategy or space that is not there.
    """
    name, sections = job.way.removeprefix("search "), job.config.to_dict()
    strategy = strategy_named(name)
    strategy.check_space(job.space)
    # The features are as long as section [search] says, whatever becomes of them.
    reads = {*strategy.READS, *space_named(job.space or strategy.SPACE).sizes(), "length"}
    if strategy.TRAINS_SUPERNET and not job.config.search.rerank:
        reads -= {"candidate_epochs"}
    keys = {f"search.{key}" for key in sections["search"].keys() - reads}
    if "train" not in job.stages:
        # The threshold decides which genotype of a multilabel task is kept.
        keys |= {f"train.{name}" for name in sections["train"] if name != "threshold"}
    others = sections.keys() - {"unimodal", "search", "train", name}
    return {k for k in settings if k in keys or k.partition(".")[0] in others}


def read_sweep(path: Path | None, given: Mapping[str, Any], grid: Sequence[str]) -> list[Setup]:
    """Return the runs of the file ``path`` with the options ``given`` over its settings.

    ``grid`` holds texts ``KEY=VALUE,VALUE…``, each another axis of the grid; values are as in TOML,
    and words need no quotes. Raises UserError for what cannot be understood.
    """
    base, axes, listed = ({}, {}, []) if path is None else _read(path)
    base |= {key: value for key, value in given.items() if value is not None}
    axes |= dict(map(_axis, grid))
    count = (math.prod(map(len, axes.values())) if axes or not listed else 0) + len(listed)
    if count > _MOST:
        raise UserError(f"received a sweep of {count:,} runs, expected at most {_MOST:,}")
    found = list(_combinations(axes, listed))
    return [
        Setup(name, varied, {**_DEFAULTS, **base, **varied})
        for name, (varied, _) in zip(_names(found), found, strict=True)
    ]


def _read(path: Path) -> tuple[Settings, dict[str, list[Any]], list[Settings]]:
    """Return the settings of all runs, the axes of the grid, and the runs that are listed."""
    content = read_toml(path)
    grid, listed = content.pop("grid", {}), content.pop("trial", [])
    if not isinstance(grid, Mapping):
        raise UserError(f"{path}: grid: {received(grid, 'a table [grid]')}")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise UserError(f"{path}: trial: {received(listed, 'tables [[trial]]')}")
    axes = _flat(grid, f"{path}: [grid]")
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: [grid] {key}: {received(values, 'a list of values')}")
        _check(key, values, f"{path}: [grid]")
    runs = []
    for number, entry in enumerate(listed, start=1):
        place = f"{path}: [[trial]] {number}"
        name = entry.pop("name", None)
        if name is not None and (not isinstance(name, str) or _slug(name) != name):
            raise UserError(f"{place}: name: {received(name, 'the name of a folder')}")
        flat = _flat(entry, place)
        for key, value in flat.items():
            _check(key, [value], place)
        runs.append(flat if name is None else {**flat, "name": name})
    base = _flat(content, str(path))
    for key, value in base.items():
        _check(key, [value], str(path))
    return base, axes, runs


def _flat(table: Mapping[str, Any], place: str) -> Settings:
    """Return the settings with those of a section as ``section.name``; unknown ones are refused."""
    sections = Config().to_dict()
    flat: Settings = {}
    for key, value in table.items():
        if key in sections and isinstance(value, Mapping):
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    known = [*_PLAIN, *(f"{name}.{key}" for name, table in sections.items() for key in table)]
    for key in flat:
        if key not in known:
            raise UserError(
                f"{place}: received {key!r}, expected {', '.join(_PLAIN)}, or a value of a preset "
                f"such as search.channels{close(key, known)}"
            )
    return flat


def _check(key: str, values: Sequence[object], place: str) -> None:
    wanted = _PLAIN.get(key)
    for value in values:
        if wanted is not None and type(value) is not wanted:
            raise UserError(f"{place} {key}: {received(value, wanted.__name__)}")


def _axis(text: str) -> tuple[str, list[Any]]:
    """Return the key and the values of ``KEY=VALUE,VALUE``."""
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not rest:
        raise UserError(f"--set: received {text!r}, expected KEY=VALUE,VALUE…")
    values = [_value(word.strip(), text) for word in rest.split(",")]
    _check(key, values, "--set")
    return next(iter(_flat({key: values}, "--set"))), values


def _value(word: str, text: str) -> Any:
    if re.fullmatch(r"[A-Za-z_./~][^\"'\[\]{}]*", word) and word not in ("true", "false"):
        return word
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except ValueError as error:
        raise UserError(f"--set: {text}: received {word!r}: {one_line(error, 80)}") from error


def _combinations(
    axes: Mapping[str, Sequence[Any]], listed: Sequence[Settings]
) -> Iterator[tuple[Settings, str | None]]:
    """Yield what each run varies, and the name that it was given."""
    if axes or not listed:
        for chosen in itertools.product(*axes.values()):
            yield dict(zip(axes, chosen, strict=True)), None
    for entry in listed:
        yield {key: value for key, value in entry.items() if key != "name"}, entry.get("name")


def _names(found: Sequence[tuple[Settings, str | None]]) -> list[str]:
    """Return a folder name for each run, from what it varies where it was given none."""
    keys = list(dict.fromkeys(key for varied, _ in found for key in varied))
    last = [key.rpartition(".")[2] for key in keys]
    short = {k: end if last.count(end) == 1 else k for k, end in zip(keys, last, strict=True)}
    names = []
    for number, (varied, given) in enumerate(found, start=1):
        words = [f"{short[key]}-{_text(value)}" for key, value in varied.items()]
        name = given or _slug("_".join(words)) or "trial"
        names.append(name if len(name) <= _LONGEST else f"{number}-{name[:_LONGEST]}")
    for name in names:
        if names.count(name) > 1:
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
