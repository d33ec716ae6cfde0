"""What a run folder or a bundle holds, read as untrusted data and checked.

Every message names the file, the place in it, what was found and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json
from bmnas.machine.schema import NotEmpty, Range, read, received
from bmnas.report.metrics import Number, RunMetrics
from bmnas.report.style import printable
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import FORMAT, Cell, Genotype
from bmnas.spaces.cells.operations import OPERATIONS, PAPER
from bmnas.spaces.registry import architecture_from_dict, load_architecture

Table = tuple[tuple[float, ...], ...]

#: What a line of a history is of.
Unit = Literal["epoch", "candidate"]

_HISTORY_LIMIT = 256_000_000  # bytes
_LARGEST = 1e300
_ROWS = "rows of lengths"


@dataclass(frozen=True)
class Weights:
    """Softmax weights of one epoch, as the search saw them.

    ``alpha`` has a row a Cell with w(i,k) of its F+k earlier nodes; ``beta`` a table a Cell
    with a row a step over x, y and earlier steps; ``gamma`` likewise over ``OPERATIONS``.
    """

    alpha: Table
    beta: tuple[Table, ...]
    gamma: tuple[Table, ...]

    def shape(self) -> tuple[int, tuple[int, ...]]:
        """Return F and the number of steps of each Cell; both fix all other lengths."""
        return len(self.alpha[0]), tuple(len(table) for table in self.beta)


@dataclass(frozen=True)
class Epoch:
    """One line of history.jsonl or train.jsonl; ``values`` holds its numbers by name.

    A search by short trainings has a line for each candidate: ``epoch`` is then its number.
    """

    epoch: int
    values: Mapping[str, float]
    best: bool = False
    weights: Weights | None = None
    cells: tuple[Cell, ...] = ()
    unit: Unit = "epoch"


_Row = Annotated[tuple[Number, ...], NotEmpty()]
_Table = Annotated[tuple[_Row, ...], NotEmpty()]


@dataclass(frozen=True)
class _Line:
    """What is checked of a line of history.jsonl or train.jsonl."""

    epoch: Annotated[int, Range(0)] | None = None
    candidate: Annotated[int, Range(0)] | None = None
    best: bool = False
    alpha: _Table | None = None
    beta: Annotated[tuple[_Table, ...], NotEmpty()] | None = None
    gamma: Annotated[tuple[_Table, ...], NotEmpty()] | None = None
    cells: Any = None


@dataclass(frozen=True)
class RunConfig:
    """What is read of config.json: the task, how the network was found, the seed."""

    task: Mapping[str, Any] = field(default_factory=dict)
    strategy: str | None = None
    fusion: str | None = None
    preset: str | None = None
    seed: int | None = None
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a bundle, of which nothing but texts is made."""

    name: Any = None
    shape: Any = None
    dtype: Any = None
    meaning: Any = None


@dataclass(frozen=True)
class Manifest:
    """What is read of manifest.json; ``reports`` are shown as they are."""

    name: str | None = None
    task: Mapping[str, Any] = field(default_factory=dict)
    fusion: Mapping[str, Any] | None = None
    class_names: tuple[Any, ...] = ()
    threshold: float | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    scores: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """A run folder; what its stages have not written yet is empty or None.

    ``settings`` is all of config.json.
    """

    path: Path
    settings: Mapping[str, Any]
    config: RunConfig
    metrics: RunMetrics
    genotype: Architecture | None
    history: tuple[Epoch, ...]
    training: tuple[Epoch, ...]
    bundle: BundleRecord | None


@dataclass(frozen=True)
class BundleRecord:
    """A bundle folder: its manifest, all that this says, and the genotype in it if there is one."""

    path: Path
    manifest: Manifest
    data: Mapping[str, Any]
    genotype: Architecture | None


def best_epoch(history: Sequence[Epoch]) -> Epoch | None:
    """Return the epoch whose genotype was kept.

    That is the last one marked best; without a mark the earliest with the highest validation
    score; None when no epoch has a score.
    """
    marked = [epoch for epoch in history if epoch.best]
    if marked:
        return marked[-1]
    scored = [epoch for epoch in history if "validation_score" in epoch.values]
    return max(scored, key=lambda e: e.values["validation_score"], default=None)


def load_run(path: str | Path) -> RunRecord:
    """Read a run folder; raises UserError when it is none or when a file of it is malformed."""
    folder = Path(path)
    names = ("config.json", "genotype.json", "history.jsonl", "metrics.json")
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"{folder}: expected a run folder with one of {', '.join(names)}")
    genotype_file = folder / "genotype.json"
    genotype = load_architecture(genotype_file) if genotype_file.is_file() else None
    # The history of another space than BM-NAS's has no weights and no Cells to check.
    features = genotype.features if isinstance(genotype, Genotype) else ()
    has_bundle = (folder / "bundle" / "manifest.json").is_file()
    config_file = folder / "config.json"
    settings = read_json(config_file) if config_file.is_file() else {}
    return RunRecord(
        folder,
        settings,
        read(RunConfig, settings, str(config_file), ignore_unknown=True),
        RunMetrics.load(folder / "metrics.json"),
        genotype,
        load_history(folder / "history.jsonl", features),
        load_history(folder / "train.jsonl"),
        load_bundle(folder / "bundle") if has_bundle else None,
    )


def load_bundle(path: str | Path) -> BundleRecord:
    """Read the manifest of a bundle folder; raises UserError when it is malformed."""
    folder = Path(path)
    file = folder / "manifest.json"
    if not file.is_file():
        raise UserError(f"{folder}: expected a bundle folder with manifest.json")
    data = read_json(file)
    manifest = read(Manifest, data, str(file), ignore_unknown=True)
    found = data.get("genotype")
    genotype = None if found is None else architecture_from_dict(found, f"{file}: genotype")
    return BundleRecord(folder, manifest, data, genotype)


def load_history(path: Path, features: Sequence[str] = ()) -> tuple[Epoch, ...]:
    """Read history.jsonl or train.jsonl; empty when the file is absent.

    ``features`` name the first nodes of alpha; where they are given, the number of weights
    and the Cells of every line are checked against them. Raises UserError.
    """
    if not path.is_file():
        return ()
    history = tuple(_epoch(data, path, line, features) for line, data in _json_lines(path))
    shapes = {epoch.weights.shape() for epoch in history if epoch.weights is not None}
    if len(shapes) > 1:
        raise UserError(f"{path}: expected weights of one shape, received {len(shapes)} shapes")
    return history


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        size = path.stat().st_size
        if size > _HISTORY_LIMIT:
            raise UserError(f"{path}: received {size:,} bytes, expected at most {_HISTORY_LIMIT:,}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 file: {error.reason}") from error
    for count, line in enumerate(lines, start=1):
        place = f"line {count}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: {place}: not JSON: {printable(str(error), 120)}") from error
        if not isinstance(data, dict):
            raise UserError(f"{path}: {place}: {received(data, 'an object')}")
        yield place, data


def _epoch(data: dict[str, Any], path: Path, place: str, features: Sequence[str]) -> Epoch:
    line = read(_Line, data, f"{path}: {place}", ignore_unknown=True)
    count = line.epoch if line.candidate is None else line.candidate
    if count is None:
        raise UserError(f"{path}: {place}: expected the key 'epoch', which is missing")
    # A line may carry text, lists and nulls of its own; only its numbers are plotted.
    values = {name: value for name, value in data.items() if type(value) in (int, float)}
    for name, value in values.items():
        # Not NaN, and no integer of a thousand digits, which is valid JSON too.
        if not abs(value) < _LARGEST:
            raise UserError(f"{path}: {place}: {name}: {received(value, 'a finite number')}")
    weights = _weights(line, path, place, len(features))
    cells: tuple[Cell, ...] = ()
    if features and line.cells is not None:
        whole = {"format": FORMAT, "features": list(features), "channels": 1, "length": 1}
        cells = Genotype.from_dict({**whole, "cells": line.cells}, f"{path}: {place}").cells
        steps = [len(cell.steps) for cell in cells]
        if weights is not None:
            _same(steps, weights.shape()[1], path, f"{place}: cells", "Cells of steps")
    unit: Unit = "epoch" if line.candidate is None else "candidate"
    return Epoch(count, values, line.best, weights, cells, unit)


def _weights(line: _Line, path: Path, place: str, features: int) -> Weights | None:
    tables = {name: getattr(line, name) for name in ("alpha", "beta", "gamma")}
    given = [name for name, table in tables.items() if table is not None]
    if not given:
        return None
    if line.alpha is None or line.beta is None or line.gamma is None:
        raise UserError(f"{path}: {place}: received only {', '.join(given)} of alpha, beta, gamma")
    cells, first = range(len(line.alpha)), features or len(line.alpha[0])
    _same(map(len, line.alpha), [first + k for k in cells], path, f"{place}: alpha", _ROWS)
    for name, many in (("beta", line.beta), ("gamma", line.gamma)):
        _same([len(many)], [len(cells)], path, f"{place}: {name}", "a count of Cells")
    # An operation that was registered since stands behind those that there were.
    pool = min(max(len(line.gamma[0][0]), len(PAPER)), len(OPERATIONS))
    for k in cells:
        steps = range(len(line.beta[k]))
        _same(map(len, line.beta[k]), [2 + m for m in steps], path, f"{place}: beta[{k}]", _ROWS)
        _same(map(len, line.gamma[k]), [pool for _ in steps], path, f"{place}: gamma[{k}]", _ROWS)
    return Weights(line.alpha, line.beta, line.gamma)


def _same(found: Iterable[int], expected: Sequence[int], path: Path, place: str, what: str) -> None:
    """Raise UserError unless both are the same numbers of ``what``."""
    shown, wanted = (printable(str(list(counts))) for counts in (found, expected))
    if shown != wanted:
        raise UserError(f"{path}: {place}: received {what} {shown}, expected {wanted}")
