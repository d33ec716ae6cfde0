"""The genotype: a fusion architecture as plain data, the one thing search and network share.

Standard library only. A genotype names the features that exist, and for every Cell its two
inputs and its steps (BM-NAS, sections 3.2 and 3.3). Files carry it as JSON, see ``Genotype.load``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.operations import OPERATIONS
from bmnas.spaces.plain_data import (
    GenotypeError,
    check_features,
    list_of,
    object_of,
    provenance_of,
    strings,
    wrong,
)

__all__ = [
    "FORMAT",
    "Cell",
    "Genotype",
    "GenotypeError",
    "Step",
]

FORMAT = "bmnas.genotype/1"


@dataclass(frozen=True)
class Step:
    """One primitive operation; ``inputs`` name ``x``, ``y`` or earlier steps (``step1``, …)."""

    op: str
    inputs: tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """Two inputs, features or earlier Cells (``cell1``, …), and the steps that fuse them."""

    inputs: tuple[str, str]
    steps: tuple[Step, ...]

    def live_steps(self) -> tuple[int, ...]:
        """Return the numbers (from 0) of the steps that compute something, not ``zero``."""
        return tuple(m for m, step in enumerate(self.steps) if not OPERATIONS[step.op].is_zero)

    def reads_y(self) -> bool:
        """Tell whether any step that is not ``zero`` reads y; x is always read (residual)."""
        return any("y" in self.steps[m].inputs for m in self.live_steps())


@dataclass(frozen=True)
class Genotype(Architecture):
    """A fusion architecture over ``features``, with C ``channels`` and length L ``length``.

    Raises GenotypeError when it breaks a rule of the specification: unknown operations or
    inputs, a reference to something later, a Cell both of whose inputs were taken before.
    """

    FORMAT: ClassVar[str] = FORMAT

    features: tuple[str, ...]
    channels: int
    length: int
    cells: tuple[Cell, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        _check(self)

    def live_features(self) -> tuple[str, ...]:
        """Return the features that a Cell really reads, in node order.

        A feature that only ``zero`` steps would read is dropped with them.
        """
        read = {cell.inputs[0] for cell in self.cells}
        read |= {cell.inputs[1] for cell in self.cells if cell.reads_y()}
        return tuple(name for name in self.features if name in read)

    def summary(self) -> str:
        """Return the number of Cells, channels and positions."""
        cells = "1 Cell" if len(self.cells) == 1 else f"{len(self.cells)} Cells"
        return f"{cells}, C = {self.channels} channels, L = {self.length} positions"

    def to_dict(self) -> dict[str, Any]:
        """Return the genotype as JSON-ready plain data in the format of the file."""
        return {
            "format": FORMAT,
            "features": list(self.features),
            "channels": self.channels,
            "length": self.length,
            "cells": [
                {
                    "inputs": list(cell.inputs),
                    "steps": [{"op": s.op, "inputs": list(s.inputs)} for s in cell.steps],
                }
                for cell in self.cells
            ],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def parse(cls, data: Any) -> Genotype:
        """Build it from plain data; raises GenotypeError that names the place in it."""
        return _genotype(data)


def _check(genotype: Genotype) -> None:
    for name in ("channels", "length"):
        value = getattr(genotype, name)
        if type(value) is not int or not 1 <= value <= 65536:
            raise wrong(name, value, "an integer from 1 to 65536")
    check_features(genotype.features)
    if not genotype.cells:
        raise wrong("cells", [], "at least one Cell")
    nodes = set(genotype.features)
    taken: set[str] = set()
    for k, cell in enumerate(genotype.cells):
        place = f"cells[{k}].inputs"
        _check_pair(cell.inputs, nodes, place, "a feature or an earlier Cell")
        if taken.issuperset(cell.inputs):
            expected = "at least one input that no earlier Cell has taken"
            raise wrong(place, list(cell.inputs), expected)
        taken.update(cell.inputs)
        nodes.add(f"cell{k + 1}")
        _check_steps(cell.steps, f"cells[{k}].steps")


def _check_steps(steps: Sequence[Step], place: str) -> None:
    if not steps:
        raise wrong(place, [], "at least one step")
    nodes = {"x", "y"}
    for m, step in enumerate(steps):
        if step.op not in OPERATIONS:
            raise wrong(f"{place}[{m}].op", step.op, f"one of {', '.join(OPERATIONS)}")
        _check_pair(step.inputs, nodes, f"{place}[{m}].inputs", "x, y or an earlier step")
        nodes.add(f"step{m + 1}")


def _check_pair(inputs: Sequence[str], nodes: set[str], place: str, expected: str) -> None:
    if len(inputs) != 2 or inputs[0] == inputs[1]:
        raise wrong(place, list(inputs), "two different names")
    for name in inputs:
        if name not in nodes:
            raise wrong(place, name, f"{expected}: {', '.join(sorted(nodes))}")


def _genotype(data: Any) -> Genotype:
    required = ("format", "features", "channels", "length", "cells")
    top = object_of(data, "", required, optional=("provenance",))
    if top["format"] != FORMAT:
        raise wrong("format", top["format"], repr(FORMAT))
    cells = list_of(top["cells"], "cells")
    return Genotype(
        features=tuple(strings(top["features"], "features")),
        channels=top["channels"],
        length=top["length"],
        cells=tuple(_cell(cell, f"cells[{k}]") for k, cell in enumerate(cells)),
        provenance=provenance_of(top.get("provenance", {})),
    )


def _cell(data: Any, place: str) -> Cell:
    cell = object_of(data, place, required=("inputs", "steps"))
    steps = list_of(cell["steps"], f"{place}.steps")
    return Cell(
        _pair(cell["inputs"], f"{place}.inputs"),
        tuple(_step(step, f"{place}.steps[{m}]") for m, step in enumerate(steps)),
    )


def _step(data: Any, place: str) -> Step:
    step = object_of(data, place, required=("op", "inputs"))
    if not isinstance(step["op"], str):
        raise wrong(f"{place}.op", step["op"], f"one of {', '.join(OPERATIONS)}")
    return Step(step["op"], _pair(step["inputs"], f"{place}.inputs"))


def _pair(data: Any, place: str) -> tuple[str, str]:
    names = strings(data, place)
    if len(names) != 2:
        raise wrong(place, data, "two names")
    return names[0], names[1]
