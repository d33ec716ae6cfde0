"""The table: every network of a space with its scores, in one ``.npz`` file; queries.

Legend: E entries, S seeds of training. The arrays of the file, format ``bmnas.tabular/1``:

| name | type | what |
|---|---|---|
| ``format`` | text | ``bmnas.tabular/1`` |
| ``about`` | text | JSON: task, metric, features, settings of search, seeds, hardware, versions |
| ``cells`` | text (E) | JSON of the Cells of an entry's genotype, as in its file |
| ``validation``, ``test`` | float64 (E, S) | scores as fractions |
| ``validation_loss``, ``test_loss`` | float64 (E, S) | mean losses |
| ``parameters`` | int64 (E) | weights of the fusion network, its classifier left out |
| ``latency_ms`` | float64 (E) | median of the fusion network alone at batch 1 in torch |
| ``seconds`` | float64 (E) | an entry's share of its batches' training, mean over seeds |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import atomic_path
from bmnas.machine.schema import Range, read
from bmnas.spaces.cells.canonical import canonical
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.space import CellSpace
from bmnas.tasks.columns import read_npz

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
    path = Path(path)
    arrays = read_npz(path, ("format", "about", "cells", *BY_SEED, *_BY_ENTRY))
    try:
        return _table(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


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
    genotypes = tuple(
        _genotype(str(cells), space, f"cells[{n}]") for n, cells in enumerate(text["cells"])
    )
    table = Table(about, genotypes, arrays)
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


def _genotype(cells: str, space: CellSpace, place: str) -> Genotype:
    genotype = space.genotype(_json(cells, place), place)
    if [len(cell.steps) for cell in genotype.cells] != [space.steps] * space.cells:
        raise UserError(f"{place}: expected {space.cells} Cells of {space.steps} steps")
    return genotype
