"""What a run folder or a bundle holds, read as untrusted data and checked.

Every message names the file, the place in it, what was found and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import read_json
from bmnas.machine.schema import NotEmpty, Range, read, received
from bmnas.report.metrics import Number, RunMetrics
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.operations import OPERATIONS, PAPER
from bmnas.spaces.mmnas.genotype import POOLS
from bmnas.spaces.registry import architecture_from_dict, load_architecture

Table = Annotated[tuple[Annotated[tuple[Number, ...], NotEmpty()], ...], NotEmpty()]
Tables = Annotated[tuple[Table, ...], NotEmpty()]


@dataclass(frozen=True)
class Epoch:
    """A line of history.jsonl or train.jsonl: of an epoch, or of a candidate with its number.

    ``alpha``, ``beta`` and ``gamma`` are softmax weights as the search saw them, all or none:
    ``alpha`` has a row a Cell over its F+k earlier nodes; ``beta`` a table a Cell with a row a
    step over x, y and earlier steps; ``gamma`` likewise over ``OPERATIONS``. ``probabilities``
    are those of the operations of each block of MMnas, the encoder's first.
    """

    epoch: Annotated[int, Range(0)] | None = None
    candidate: Annotated[int, Range(0)] | None = None
    best: bool = False
    learning_rate: Number | None = None
    train_loss: Number | None = None
    architecture_loss: Number | None = None
    validation_loss: Number | None = None
    train_score: Number | None = None
    validation_score: Number | None = None
    alpha: Table | None = None
    beta: Tables | None = None
    gamma: Tables | None = None
    probabilities: Table | None = None

    @property
    def unit(self) -> str:
        """What the line is of."""
        return "epoch" if self.candidate is None else "candidate"

    @property
    def number(self) -> int:
        """Which epoch or candidate it is."""
        return (self.epoch if self.candidate is None else self.candidate) or 0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is missing, and weights that do not fit each other."""
        if self.epoch is None and self.candidate is None:
            yield "epoch", "expected the number of the epoch, which is missing"
        lengths = [len(row) for row in self.probabilities or ()]
        if not set(lengths) <= set(POOLS):
            yield "probabilities", f"received rows of lengths {lengths}, expected {list(POOLS)}"
        if not (self.alpha and self.beta and self.gamma):
            if self.alpha or self.beta or self.gamma:
                yield "alpha", "expected all of alpha, beta and gamma, or none of them"
            return
        steps = [len(table) for table in self.beta]
        # An operation that was registered since stands behind those that there were.
        pool = min(max(len(self.gamma[0][0]), len(PAPER)), len(OPERATIONS))
        first = max(2, len(self.alpha[0]))
        for name, tables, expected in (
            ("alpha", [self.alpha], [[first + k for k in range(len(steps))]]),
            ("beta", self.beta, [[2 + m for m in range(n)] for n in steps]),
            ("gamma", self.gamma, [[pool] * n for n in steps]),
        ):
            found = [[len(row) for row in table] for table in tables]
            if found != expected:
                yield name, f"received rows of lengths {found}, expected {expected}"


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
class Record:
    """What is in a run folder, a bundle folder or a genotype file, empty where there is nothing.

    ``settings`` is all of config.json, ``manifest`` that of the bundle.
    """

    path: Path
    kind: Literal["run", "bundle", "genotype"]
    genotype: Architecture | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: RunConfig = field(default_factory=RunConfig)
    metrics: RunMetrics = field(default_factory=RunMetrics)
    history: tuple[Epoch, ...] = ()
    training: tuple[Epoch, ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)


def best_epoch(history: Sequence[Epoch]) -> Epoch | None:
    """Return the epoch whose genotype was kept.

    That is the last one marked best; without a mark the earliest with the highest validation
    score; None when no epoch has a score.
    """
    marked = [epoch for epoch in history if epoch.best]
    scored = [(e.validation_score, e) for e in history if e.validation_score is not None]
    if marked or not scored:
        return marked[-1] if marked else None
    return max(scored, key=lambda pair: pair[0])[1]


def load_record(path: Path) -> Record:
    """Read a genotype file, a run folder or a bundle folder; raises UserError if it is none."""
    if not path.exists():
        raise UserError(f"{path}: does not exist; expected a genotype.json, a run or a bundle")
    if not path.is_dir():
        return Record(path, "genotype", load_architecture(path))
    return load_bundle(path) if (path / "manifest.json").is_file() else load_run(path)


def load_run(path: str | Path) -> Record:
    """Read a run folder; raises UserError when it is none or when a file of it is malformed."""
    folder = Path(path)
    names = ("config.json", "genotype.json", "history.jsonl", "metrics.json")
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"{folder}: expected a run folder with one of {', '.join(names)}")
    genotype_file, config_file = folder / "genotype.json", folder / "config.json"
    settings = read_json(config_file) if config_file.is_file() else {}
    bundle = folder / "bundle"
    return Record(
        folder,
        "run",
        load_architecture(genotype_file) if genotype_file.is_file() else None,
        settings,
        read(RunConfig, settings, str(config_file), ignore_unknown=True),
        RunMetrics.load(folder / "metrics.json"),
        load_history(folder / "history.jsonl"),
        load_history(folder / "train.jsonl"),
        load_bundle(bundle).manifest if (bundle / "manifest.json").is_file() else {},
    )


def load_bundle(path: str | Path) -> Record:
    """Read the manifest of a bundle folder; raises UserError when it is malformed."""
    file = Path(path) / "manifest.json"
    manifest = read_json(file)
    if not isinstance(manifest, dict):
        raise UserError(f"{file}: {received(manifest, 'an object')}")
    found = manifest.get("genotype")
    genotype = None if found is None else architecture_from_dict(found, f"{file}: genotype")
    return Record(Path(path), "bundle", genotype, manifest=manifest)


def load_history(path: Path) -> tuple[Epoch, ...]:
    """Read history.jsonl or train.jsonl; empty when the file is absent. Raises UserError."""
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        place = f"{path}: line {number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON: {one_line(error)}") from error
        epochs.append(read(Epoch, data, place, ignore_unknown=True))
    return tuple(epochs)
