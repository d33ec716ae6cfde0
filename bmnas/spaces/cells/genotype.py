"""The genotype: a fusion architecture as plain data, the one thing search and network share.

Standard library only. A genotype names the features that exist, and for every Cell its two
inputs and its steps (BM-NAS, sections 3.2 and 3.3). Files carry it as JSON, see ``Genotype.load``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, TypeVar

from bmnas.spaces.architecture import Architecture, GenotypeError, check_features, wrong
from bmnas.spaces.cells.operations import OPERATIONS
from bmnas.training.settings import Size

__all__ = ["FORMAT", "Cell", "Genotype", "GenotypeError", "Step"]

FORMAT = "bmnas.genotype/1"

Node = TypeVar("Node")


def cell_nodes(features: Sequence[str], k: int) -> list[str]:
    """Return what Cell k (from 0) can read, in node order."""
    return [*features, *(f"cell{n + 1}" for n in range(k))]


def step_nodes(m: int) -> list[str]:
    """Return what step m (from 0) of a Cell can read, in node order."""
    return ["x", "y", *(f"step{n + 1}" for n in range(m))]


def free_pairs(
    nodes: Iterable[Node], earlier: Iterable[tuple[Node, Node]]
) -> list[tuple[Node, Node]]:
    """Return the pairs of ``nodes`` that a Cell may take after ``earlier`` pairs, in their order.

    At least one of a pair was not taken by an earlier Cell (footnote 1).
    """
    taken = {node for pair in earlier for node in pair}
    return [pair for pair in combinations(nodes, 2) if not taken.issuperset(pair)]


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
    channels: Size
    length: Size
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


def _check(genotype: Genotype) -> None:
    check_features(genotype.features)
    if not genotype.cells:
        raise wrong("cells", [], "at least one Cell")
    taken: set[str] = set()
    for k, cell in enumerate(genotype.cells):
        place = f"cells[{k}].inputs"
        nodes = cell_nodes(genotype.features, k)
        _check_pair(cell.inputs, nodes, place, "a feature or an earlier Cell")
        if taken.issuperset(cell.inputs):
            expected = "at least one input that no earlier Cell has taken"
            raise wrong(place, list(cell.inputs), expected)
        taken.update(cell.inputs)
        _check_steps(cell.steps, f"cells[{k}].steps")


def _check_steps(steps: Sequence[Step], place: str) -> None:
    if not steps:
        raise wrong(place, [], "at least one step")
    for m, step in enumerate(steps):
        if step.op not in OPERATIONS:
            raise wrong(f"{place}[{m}].op", step.op, f"one of {', '.join(OPERATIONS)}")
        _check_pair(step.inputs, step_nodes(m), f"{place}[{m}].inputs", "x, y or an earlier step")


def _check_pair(inputs: Sequence[str], nodes: Sequence[str], place: str, expected: str) -> None:
    if len(inputs) != 2 or inputs[0] == inputs[1]:
        raise wrong(place, list(inputs), "two different names")
    for name in inputs:
        if name not in nodes:
            raise wrong(place, name, f"{expected}: {', '.join(sorted(nodes))}")
