"""The tabular benchmark: a space small enough to train completely, and searches replayed on it.

A table is every network of a space with its scores, in one ``.npz`` file, whose arrays
docs/tabular.md lists. ``load`` reads one, ``bmnas.lab.table_build`` makes one.

Legend: E entries, S seeds of training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bmnas.machine.errors import UserError, at, close, one_line
from bmnas.machine.files import atomic_path
from bmnas.machine.schema import Range, read
from bmnas.spaces.cells.canonical import canonical
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.space import CellSpace
from bmnas.strategies import STRATEGIES, Candidate, ProposingStrategy
from bmnas.strategies.evaluator import BudgetSpentError, run_strategy
from bmnas.strategies.settings import SearchConfig
from bmnas.tasks.columns import read_npz

__all__ = ["Entry", "Measured", "Replay", "Table", "TableEvaluator", "canonical", "load", "replay"]

FORMAT = "bmnas.tabular/1"

_Size = Annotated[int, Range(1)]
Measured = Literal["validation", "test"]

#: Arrays with a number for each seed of each entry.
BY_SEED = ("validation", "test", "validation_loss", "test_loss")
_BY_ENTRY = {"parameters": np.int64, "latency_ms": np.float64, "seconds": np.float64}


@dataclass(frozen=True)
class _Space:
    cells: _Size
    steps: _Size
    channels: _Size
    length: _Size


@dataclass(frozen=True)
class _About:
    """What is needed of ``about``; the rest is for people."""

    task: Mapping[str, Any]
    metric: str
    features: tuple[str, ...]
    search: _Space
    seed: int


@dataclass(frozen=True)
class Entry:
    """A network of the table: scores as fractions by seed, weights, milliseconds, seconds."""

    number: int
    genotype: Genotype
    validation: tuple[float, ...]
    test: tuple[float, ...]
    parameters: int
    latency_ms: float
    seconds: float


@dataclass(frozen=True)
class Table:
    """Every network of a space; ``about`` says how it was trained, arrays are those of the file."""

    about: Mapping[str, Any]
    genotypes: tuple[Genotype, ...]
    arrays: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.genotypes)

    def __iter__(self) -> Iterator[Entry]:
        """Yield all entries."""
        return map(self.at, range(len(self)))

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features in node order."""
        return tuple(self.about["features"])

    @cached_property
    def space(self) -> CellSpace:
        """The space whose networks the table holds."""
        return CellSpace.of(self.features, self.about["search"])

    @property
    def seeds(self) -> int:
        """How many seeds every entry was trained with."""
        return int(self.arrays["test"].shape[1])

    def at(self, number: int) -> Entry:
        """Return an entry by its number, from 0."""
        arrays = self.arrays
        return Entry(
            number,
            self.genotypes[number],
            tuple(map(float, arrays["validation"][number])),
            tuple(map(float, arrays["test"][number])),
            int(arrays["parameters"][number]),
            float(arrays["latency_ms"][number]),
            float(arrays["seconds"][number]),
        )

    def entry(self, genotype: Genotype) -> Entry:
        """Return the entry of the network that ``genotype``, or one isomorphic to it, builds.

        Raises UserError for one of other features, channels or length, or outside the space.
        """
        name, space = CellSpace.canonical(genotype), self.space
        known = (genotype.channels, genotype.length) == (space.channels, space.length)
        if not known or name not in self._numbers:
            raise UserError(
                f"received {name[:80]} of channels {genotype.channels} and length "
                f"{genotype.length}, expected a network of the table: {space.cells} Cells of "
                f"{space.steps} steps on {', '.join(space.features)}, the inputs of each Cell in "
                f"this order, of channels {space.channels} and length {space.length}"
            )
        return self.at(self._numbers[name])

    def scores(self, part: Measured = "test") -> NDArray[np.float64]:
        """Return the mean score over seeds of every entry (E,)."""
        mean: NDArray[np.float64] = self.arrays[part].mean(axis=1)
        return mean

    def best(self, part: Measured = "test") -> Entry:
        """Return the entry with the best mean score; the first of equals."""
        return self.at(int(self.scores(part).argmax()))

    def regret(self, entry: Entry, part: Measured = "test") -> float:
        """Return by how much the mean score of ``entry`` is below the best, as a fraction."""
        scores = self.scores(part)
        return float(scores.max() - scores[entry.number])

    def percentile(self, entry: Entry, part: Measured = "test") -> float:
        """Return the per cent of all entries whose mean score is not above that of ``entry``.

        100 is the best; the top 5 % are above 95.
        """
        scores = self.scores(part)
        return float(100 * np.mean(scores <= scores[entry.number]))

    def save(self, path: Path) -> None:
        """Write the table's file, whole or not at all."""
        cells = [json.dumps(genotype.to_dict()["cells"]) for genotype in self.genotypes]
        with atomic_path(path) as aside, aside.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.array(FORMAT),
                about=np.array(json.dumps(self.about, sort_keys=True, allow_nan=False)),
                cells=np.array(cells),
                **self.arrays,  # type: ignore[arg-type]
            )

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {canonical(genotype): n for n, genotype in enumerate(self.genotypes)}


def load(path: str | Path) -> Table:
    """Read a table's file; raises UserError, naming it, when it is missing, damaged or no table."""
    arrays = read_npz(Path(path), ("format", "about", "cells", *BY_SEED, *_BY_ENTRY))
    with at(path):
        return _table(arrays)


def _table(arrays: dict[str, NDArray[Any]]) -> Table:
    text = {name: arrays.pop(name) for name in ("format", "about", "cells")}
    if str(text["format"]) != FORMAT:
        raise UserError(f"received format {str(text['format'])[:40]!r}, expected {FORMAT!r}")
    if text["cells"].ndim != 1 or text["cells"].dtype.kind != "U":
        raise UserError("cells: expected texts of shape (E,)")
    _check_arrays(arrays, len(text["cells"]))
    about = _json(str(text["about"]), "about")
    read(_About, about, "about", ignore_unknown=True)
    space = CellSpace.of(about["features"], about["search"])
    genotypes = []
    for number, cells in enumerate(text["cells"]):
        place = f"cells[{number}]"
        genotypes.append(space.genotype(_json(str(cells), place), place))
        if [len(cell.steps) for cell in genotypes[-1].cells] != [space.steps] * space.cells:
            raise UserError(f"{place}: expected {space.cells} Cells of {space.steps} steps")
    table = Table(about, tuple(genotypes), arrays)
    if len(table._numbers) < len(table):
        raise UserError("received a network twice, expected every network once")
    return table


def _check_arrays(arrays: Mapping[str, NDArray[Any]], entries: int) -> None:
    seeds = arrays["test"].shape[-1] if arrays["test"].ndim == 2 else 1
    expected = {
        **dict.fromkeys(BY_SEED, (np.float64, (entries, seeds))),
        **{name: (kind, (entries,)) for name, kind in _BY_ENTRY.items()},
    }
    for name, (kind, shape) in expected.items():
        array = arrays[name]
        if array.dtype != kind or array.shape != shape or 0 in shape:
            raise UserError(
                f"{name}: received {array.dtype} {array.shape}, expected {np.dtype(kind)} {shape}, "
                "no axis empty"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{name}: received a number that is not finite")


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {one_line(error, 120)}") from error


Replayed = type[ProposingStrategy]


class TableEvaluator:
    """Says what a table knows of candidates, ``budget`` of them; subsets of data are not known.

    Of an entry's trainings one is drawn, each time anew: a search trains a candidate once.
    """

    def __init__(self, table: Table, seed: int, budget: int) -> None:
        #: The entries that were asked for, in order, and the scores that were seen.
        self.asked: list[tuple[int, float]] = []
        self._table = table
        self._budget = budget
        self._noise = Random(f"{seed} training")

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the validation score of one training of each candidate.

        Raises BudgetSpentError when nothing is left, UserError for what the table does not hold.
        """
        scores = []
        for candidate in candidates:
            if len(self.asked) == self._budget:
                raise BudgetSpentError
            if not isinstance(candidate.genotype, Genotype):
                raise UserError(
                    f"received a genotype of format {candidate.genotype.FORMAT!r}, expected Cells: "
                    "a table holds no other networks"
                )
            entry = self._table.entry(candidate.genotype)
            scores.append(entry.validation[self._noise.randrange(self._table.seeds)])
            self.asked.append((entry.number, scores[-1]))
        return scores


@dataclass(frozen=True)
class Replay:
    """What a replayed search asked for, and what it ends with.

    ``asked`` holds the numbers of the entries in order and the scores that it saw; ``seconds`` is
    what their trainings took when the table was built.
    """

    asked: tuple[tuple[int, float], ...]
    best: Entry
    seconds: float


def replayed_strategies() -> Mapping[str, Replayed]:
    """Return the strategies that can be replayed: those that train no supernet."""
    return {name: s for name, s in STRATEGIES.items() if issubclass(s, ProposingStrategy)}


def replay(
    table: Table,
    strategy: str | Replayed,
    *,
    seed: int,
    budget: int,
    settings: Any = None,
) -> Replay:
    """Run ``strategy`` on ``table`` until it ends or has asked for ``budget`` scores.

    ``settings`` are those of the strategy, by default the defaults. The result is the candidate
    whose score was best when it was seen; the first of equals. Raises UserError for a strategy that
    cannot be replayed, a budget below 1, or a strategy that asks for nothing.
    """
    known = replayed_strategies()
    kind = known.get(strategy) if isinstance(strategy, str) else strategy
    if kind is None:
        hint = close(str(strategy), list(known))
        raise UserError(f"received strategy {strategy!r}, expected one of {', '.join(known)}{hint}")
    if budget < 1:
        raise UserError(f"received a budget of {budget}, expected 1 or more")
    if settings is None:
        settings = (kind.SETTINGS or SearchConfig)()
    evaluator = TableEvaluator(table, seed, budget)
    run_strategy(kind(table.space, settings, seed), evaluator)
    if not evaluator.asked:
        raise UserError("the strategy asked for no candidate's score, expected one at least")
    best, _ = max(evaluator.asked, key=lambda asked: asked[1])
    seconds = sum(table.at(number).seconds for number, _ in evaluator.asked)
    return Replay(tuple(evaluator.asked), table.at(best), seconds)
