"""A task of a user's own arrays, described in a ``task.toml``; no Python needed.

See ``docs/your-own-data.md`` for a walk through one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_toml
from bmnas.tasks.columns import Columns
from bmnas.tasks.kinds import TASK_KINDS, Array, TaskKind, task_kind
from bmnas.tasks.split import random_parts, stratified_parts
from bmnas.tasks.task import (
    MODALITY_TYPES,
    PARTS,
    Modality,
    Task,
)

_Choice = TypeVar("_Choice", bound=str)

_PART_NAMES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
_TOP = ("name", "kind", "data", "labels", "split", "modality")
_TOP_OPTIONAL = ("class_names", "preset", "licence")
_MODALITY = ("array", "type")
_MODALITY_OPTIONAL = ("index", "sample_rate", "backbone", "features", "weights")


def load_task_file(path: Path, data: Path | None = None) -> Task:
    """Load the task that the TOML file ``path`` describes.

    Data files are relative to ``path``'s folder, or to the folder ``data`` when it is given;
    weights and ``hf:`` folders are relative to ``path``'s folder. Modalities keep their order.

    Raises UserError: one line with the file, the key, what was received and what expected.
    """
    if data is not None and not data.is_dir():
        raise UserError(f"received --data {data}, expected a folder")
    table = Table(read_toml(path), str(path))
    table.expect_keys(_TOP, _TOP_OPTIONAL)
    name = table.string("name")
    kind = task_kind(table.choice("kind", tuple(TASK_KINDS)))
    preset = table.string("preset", "default")
    folder = path.parent if data is None else data
    columns = _open_columns(table, folder, hint=data is None)
    described = table.inner("modality")
    modalities = tuple(
        _modality(described.inner(m, f"[modality.{m}]"), m, columns, path.parent)
        for m in described.values
    )
    labels = table.column("labels", columns)
    part = _part(table, columns, labels, kind)
    names = _class_names(table, columns)
    seen = part != PARTS.index("test")
    labels, names = kind.encode(labels, seen, names, f"{table.place}: labels")
    source = {"task": str(path.resolve())}
    if data is not None:
        source["data"] = str(data.resolve())
    return Task(
        name=name,
        kind=kind.name,
        modalities=modalities,
        labels=labels,
        part=part,
        class_names=names,
        preset=preset,
        licence=table.string("licence", "not stated"),
        source=source,
    )


class Table:
    """A TOML table that knows its place, so that an error can say where and what."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = values
        self.place = place

    def expect_keys(self, required: Sequence[str], optional: Sequence[str]) -> None:
        """Refuse unknown keys and demand the required ones."""
        allowed = (*required, *optional)
        for key in self.values:
            if key not in allowed:
                raise UserError(
                    f"{self.place}: received key {key!r}, expected only "
                    f"{', '.join(allowed)}{close(key, allowed)}"
                )
        for key in required:
            if key not in self.values:
                raise UserError(f"{self.place}: expected the key {key!r}, which is missing")

    def wrong(self, key: str, expected: str) -> UserError:
        """Return the error for the value of ``key``."""
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
        return UserError(f"{self.place}: {key}: received {shown}, expected {expected}")

    def string(self, key: str, default: str = "") -> str:
        """Return a string that is not empty."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a string")
        return value

    def choice(self, key: str, choices: Sequence[_Choice]) -> _Choice:
        """Return one of ``choices``."""
        for choice in choices:
            if self.values.get(key) == choice:
                return choice
        near = close(str(self.values.get(key)), choices)
        raise self.wrong(key, f"one of {', '.join(choices)}{near}")

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of strings that are not empty; () when the key is absent."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def number(self, key: str, default: float) -> float:
        """Return a finite number; a boolean is none."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        if not math.isfinite(value):
            raise self.wrong(key, "a finite number")
        return value

    def inner(self, key: str, place: str | None = None) -> Table:
        """Return a table inside this one."""
        value = self.values.get(key)
        if not isinstance(value, dict) or not value:
            raise self.wrong(key, "a table that is not empty")
        return Table(value, f"{self.place}: {place}" if place else self.place)

    def column(self, key: str, columns: Columns, *, text: bool = False) -> Array:
        """Return the array whose name is the value of ``key``."""
        name = self.string(key)
        try:
            return columns.get(name, text=text)
        except UserError as error:
            raise UserError(f"{self.place}: {key}: {error}") from error


def _open_columns(table: Table, folder: Path, *, hint: bool) -> Columns:
    value = table.values["data"]
    names = (table.string("data"),) if isinstance(value, str) else table.strings("data")
    if not names:
        raise table.wrong("data", "a file name or a list of them")
    try:
        return Columns([folder / name for name in names])
    except UserError as error:
        missing = hint and not all((folder / name).exists() for name in names)
        more = ": give --data DIR, the folder that holds the data" if missing else ""
        raise UserError(f"{table.place}: data: {error}{more}") from error


def _modality(table: Table, name: str, columns: Columns, folder: Path) -> Modality:
    table.expect_keys(_MODALITY, _MODALITY_OPTIONAL)
    kind = table.choice("type", MODALITY_TYPES)
    given = table.values
    rate = given.get("sample_rate")
    if rate is not None and (type(rate) is not int or rate <= 0):
        raise table.wrong("sample_rate", "samples per second, a positive integer")
    backbone = table.string("backbone") if "backbone" in given else None
    if backbone is not None and backbone.startswith("hf:"):
        backbone = f"hf:{(folder / Path(backbone[3:]).expanduser()).resolve()}"
    weights = None
    if "weights" in given:
        weights = (folder / Path(table.string("weights")).expanduser()).resolve()
        if not weights.is_file():
            raise table.wrong("weights", f"a file; there is no {weights}")
    return Modality(
        name=name,
        type=kind,
        data=table.column("array", columns, text=kind == "text"),
        index=table.column("index", columns) if "index" in given else None,
        backbone=backbone,
        weights=weights,
        features=table.strings("features"),
        sample_rate=rate,
    )


def _part(table: Table, columns: Columns, labels: Array, kind: TaskKind) -> Array:
    if isinstance(table.values["split"], dict):
        return _drawn_part(table.inner("split", "split"), labels, kind)
    part = table.column("split", columns)
    if part.dtype.kind != "U":
        return part
    numbers = np.full(part.shape, -1, dtype=np.int64)
    for name, number in _PART_NAMES.items():
        numbers[part == name] = number
    if np.any(numbers < 0):
        row = int(np.argmax(numbers < 0))
        raise UserError(
            f"{table.place}: split: received {str(part.flat[row])!r} in row {row}, "
            f"expected one of {', '.join(_PART_NAMES)}"
        )
    return numbers


def _drawn_part(table: Table, labels: Array, kind: TaskKind) -> Array:
    table.expect_keys(PARTS, ("seed",))
    train, validation, test = (table.number(part, 0.0) for part in PARTS)
    if min(train, validation, test) <= 0 or abs(train + validation + test - 1) > 1e-6:
        raise UserError(
            f"{table.place}: received {train}, {validation}, {test}, "
            "expected three fractions above 0 with the sum 1"
        )
    seed = table.number("seed", 0)
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise table.wrong("seed", "an integer from 0 to 4294967295")
    strata = kind.strata(labels)
    if strata is not None:
        return stratified_parts(strata, (train, validation, test), seed)
    samples = labels.shape[0] if labels.ndim else 0
    return random_parts(samples, (train, validation, test), seed)


def _class_names(table: Table, columns: Columns) -> tuple[str, ...] | None:
    if "class_names" not in table.values:
        return None
    if isinstance(table.values["class_names"], list):
        return table.strings("class_names")
    names = table.column("class_names", columns, text=True)
    if names.dtype.kind != "U" or names.ndim != 1:
        raise table.wrong("class_names", "a list of strings, or the name of an array of strings")
    return tuple(names.tolist())
