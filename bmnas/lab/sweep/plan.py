"""What a sweep tries: a grid, a list, or both, as a TOML file and options say it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, close, one_line
from bmnas.machine.files import read_toml
from bmnas.pipeline.config import Config, load_preset

#: Settings of a trial that are no configuration values, with their types.
_PLAIN: Mapping[str, type] = {
    "task": str,
    "data": str,
    "preset": str,
    "strategy": str,
    "seed": int,
}
_SECTIONS = tuple(Config().to_dict())
_DEFAULTS: Mapping[str, Any] = {"task": "digits", "strategy": "bmnas", "seed": 0}
_LONGEST = 100  # of a folder's name
_MOST = 10_000  # trials: more is a slip of the pen


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its folder's name, what is varied, and all that was set.

    Keys are ``task``, ``data``, ``preset``, ``strategy``, ``seed``, and configuration values by
    section, such as ``search.channels``.
    """

    name: str
    varied: Mapping[str, Any]
    settings: Mapping[str, Any]

    def config(self, preset: str) -> Config:
        """Return the trial's configuration on top of its preset, else of the task's ``preset``.

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


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep in order, and whether each found network is trained and tested too."""

    trials: tuple[Trial, ...]
    train: bool = False


@dataclass
class _Draft:
    base: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Sequence[Any]] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)


def make_plan(
    path: Path | None, given: Mapping[str, Any], grid: Sequence[str], *, train: bool
) -> Plan:
    """Return the plan of the file ``path`` with the options ``given`` over its settings.

    ``grid`` holds texts ``KEY=VALUE,VALUE…``, each another axis of the grid; values are as in TOML,
    and words need no quotes. Raises UserError for what cannot be understood.
    """
    draft = _Draft() if path is None else _read(path)
    draft.base.update({key: value for key, value in given.items() if value is not None})
    for text in grid:
        key, values = _axis(text)
        draft.grid[key] = values
    found = list(_combinations(draft))
    names = _names([varied for varied, _ in found], [own for _, own in found])
    trials = []
    for name, (varied, _) in zip(names, found, strict=True):
        settings = {**_DEFAULTS, **draft.base, **varied}
        trials.append(Trial(name, varied, settings))
    return Plan(tuple(trials), train)


def _read(path: Path) -> _Draft:
    content = read_toml(path)
    grid = _flat(_table(content.pop("grid", {}), "grid", path), f"{path}: [grid]")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: [grid] {key}: received {values!r}, expected a list of values")
        for value in values:
            _check(key, value, f"{path}: [grid]")
    listed = []
    entries = content.pop("trial", [])
    if not isinstance(entries, list):
        raise UserError(f"{path}: trial: received {entries!r}, expected tables [[trial]]")
    for number, entry in enumerate(entries, start=1):
        place = f"{path}: [[trial]] {number}"
        table = dict(_table(entry, f"trial {number}", path))
        name = table.pop("name", None)
        if name is not None and (not isinstance(name, str) or _slug(name) != name):
            raise UserError(f"{place}: name: received {name!r}, expected a folder's name")
        flat = _flat(table, place)
        for key, value in flat.items():
            _check(key, value, place)
        listed.append({**flat, **({} if name is None else {"name": name})})
    base = _flat(content, str(path))
    for key, value in base.items():
        _check(key, value, str(path))
    return _Draft(base, grid, listed)


def _table(value: object, name: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: {name}: received {value!r}, expected a table")
    return value


def _flat(table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the settings with those of a section as ``section.name``; unknown ones are refused."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if key in _SECTIONS and isinstance(value, Mapping):
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    for key in flat:
        _require_known(key, place)
    return flat


def _require_known(key: str, place: str) -> None:
    sections = {name: list(table) for name, table in Config().to_dict().items()}
    known = [*_PLAIN, *(f"{section}.{name}" for section in sections for name in sections[section])]
    if key not in known:
        raise UserError(
            f"{place}: received {key!r}, expected {', '.join(_PLAIN)}, or a value of a preset "
            f"such as search.channels{close(key, known)}"
        )


def _check(key: str, value: object, place: str) -> None:
    wanted = _PLAIN.get(key)
    if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
        raise UserError(f"{place} {key}: received {value!r}, expected {wanted.__name__}")


def _axis(text: str) -> tuple[str, list[Any]]:
    """Return the key and the values of ``KEY=VALUE,VALUE``."""
    key, equals, rest = text.partition("=")
    key = key.strip()
    if not equals or not rest.strip():
        raise UserError(f"--set: received {text!r}, expected KEY=VALUE,VALUE…")
    _require_known(key, "--set")
    values = [_value(word.strip(), text) for word in rest.split(",")]
    for value in values:
        _check(key, value, "--set")
    return key, values


def _value(word: str, text: str) -> Any:
    if re.fullmatch(r"[A-Za-z_./~][^\"'\[\]{}]*", word) and word not in ("true", "false"):
        return word
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except ValueError as error:
        raise UserError(f"--set: {text}: received {word!r}: {one_line(error, 80)}") from error


def _combinations(draft: _Draft) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield what each trial varies, and the name that it was given."""
    axes = [[(key, value) for value in values] for key, values in draft.grid.items()]
    count = len(draft.listed)
    for axis in axes:
        count = max(1, count) * len(axis)
    if count > _MOST:
        raise UserError(f"received a sweep of {count:,} trials, expected at most {_MOST:,}")
    if axes or not draft.listed:
        for chosen in itertools.product(*axes):
            yield dict(chosen), None
    for entry in draft.listed:
        yield {key: value for key, value in entry.items() if key != "name"}, entry.get("name")


def _names(varied: Sequence[Mapping[str, Any]], own: Sequence[str | None]) -> list[str]:
    """Return a folder name for each trial, from what it varies where it was given none."""
    keys = list(dict.fromkeys(key for each in varied for key in each))
    last = [key.rpartition(".")[2] for key in keys]
    short = {k: end if last.count(end) == 1 else k for k, end in zip(keys, last, strict=True)}
    names = []
    for number, (each, given) in enumerate(zip(varied, own, strict=True), start=1):
        words = [f"{short[key]}-{_text(value)}" for key, value in each.items()]
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
