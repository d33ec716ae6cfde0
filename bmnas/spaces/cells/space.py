"""The space of Cells: every genotype that a search of N Cells and M steps could yield."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from math import prod
from random import Random
from typing import TYPE_CHECKING, ClassVar, TypeVar

from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.canonical import canonical
from bmnas.spaces.cells.derive import ArchitectureWeights
from bmnas.spaces.cells.describe import describe_cells
from bmnas.spaces.cells.genotype import Cell, Genotype, Step, cell_nodes, free_pairs, step_nodes
from bmnas.spaces.cells.operations import OPERATIONS, operation_names
from bmnas.spaces.description import Description
from bmnas.spaces.space import Encoded, SearchSpace

if TYPE_CHECKING:
    from bmnas.spaces.cells.supernet import Supernet
    from bmnas.spaces.fusion import Fusion

_LARGEST = 1_000_000  # genotypes that are listed
_ORDERED = 6  # Cells, or steps of one; the canonical name looks at all their orders
_DRAWS = 100  # from weights that may leave a single feature

_Pair = tuple[str, str]
_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class CellSpace(SearchSpace[Genotype]):
    """All genotypes over ``features`` with N ``cells`` of M ``steps``, as they can be derived.

    A Cell takes two earlier nodes in node order, not both of which an earlier Cell took; a step two
    different earlier nodes of its Cell in either order and any operation of the pool.
    """

    NAME: ClassVar[str] = "cells"
    GENOTYPE: ClassVar[type[Architecture]] = Genotype
    HAS_SUPERNET: ClassVar[bool] = True

    features: tuple[str, ...]
    cells: int = 2
    steps: int = 2
    channels: int = 64
    length: int = 8

    @classmethod
    def build(
        cls, genotype: Genotype, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> Fusion:
        """Return the fusion network: reshape layers, Cells, head."""
        from bmnas.spaces.cells.network import FusionNetwork

        return FusionNetwork(genotype, channels_raw, classes=classes, dropout=dropout)

    @classmethod
    def describe(cls, genotype: Genotype) -> Description:
        """Return Cells with their ports, steps and outputs, and the head."""
        return describe_cells(genotype)

    @classmethod
    def canonical(cls, genotype: Genotype) -> str:
        """Return the name that isomorphic genotypes share, see ``canonical``.

        Of more than six Cells or steps, whose orders are too many, that of the genotype itself.
        """
        steps = max(len(cell.steps) for cell in genotype.cells)
        if max(len(genotype.cells), steps) <= _ORDERED:
            return canonical(genotype)
        return super().canonical(genotype)

    def supernet(self, channels_raw: Sequence[int], *, classes: int, dropout: float) -> Supernet:
        """Return the relaxed network of the space, for ``bmnas.strategies.bilevel``."""
        from bmnas.spaces.cells.supernet import Supernet

        return Supernet(
            channels_raw,
            cells=self.cells,
            steps=self.steps,
            channels=self.channels,
            length=self.length,
            classes=classes,
            dropout=dropout,
        )

    def genotype(self, cells: object, source: str = "genotype") -> Genotype:
        """Return the genotype with ``cells`` as in the file ``source``; raises GenotypeError."""
        return Genotype.from_dict(
            {
                "format": Genotype.FORMAT,
                "features": list(self.features),
                "channels": self.channels,
                "length": self.length,
                "cells": cells,
            },
            source,
        )

    def sample(self, draw: Random) -> Genotype:
        """Return a genotype, each choice drawn evenly from those of a derivation.

        One whose network would read a single feature is drawn again.
        """
        while True:
            genotype = self._drawn(None, draw)
            if len(genotype.live_features()) > 1:
                return genotype

    def sample_from(self, weights: ArchitectureWeights, draw: Random) -> Genotype:
        """Return a genotype drawn from relaxed ``weights``.

        A pair of nodes comes up in proportion to the product of its Identity weights, which Eq. 3
        and Eq. 11 maximise, an operation in proportion to its gamma; pairs that an earlier Cell
        used up (footnote 1) do not. A genotype whose network would read a single feature is drawn
        again; where the weights leave no other, it is drawn evenly.
        """
        for _ in range(_DRAWS):
            genotype = self._drawn(weights, draw)
            if len(genotype.live_features()) > 1:
                return genotype
        return self.sample(draw)

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """Return the genotypes that differ from ``genotype`` in one choice.

        A choice is a Cell's pair of inputs, a step's pair of inputs, or a step's operation.
        """
        cells = list(enumerate(genotype.cells))
        other_inputs = [
            _with(genotype, k, Cell(pair, cell.steps))
            for k, cell in cells
            for pair in self._pairs_for(genotype, k)
            if pair != cell.inputs
        ]
        other_steps = [
            _with(genotype, k, _with_step(cell, m, other))
            for k, cell in cells
            for m, step in enumerate(cell.steps)
            for other in _step_choices(m)
            if (other.op == step.op) != (other.inputs == step.inputs)
        ]
        return [*other_inputs, *other_steps]

    def crossed(self, first: Genotype, second: Genotype, draw: Random) -> tuple[Genotype, Genotype]:
        """Exchange all choices after one that is drawn; pairs of inputs only where both may.

        Choices stand in the order inputs of a Cell, its steps, inputs of the next Cell, and so on.
        """
        size = self.cells * (1 + self.steps)
        cut = draw.randrange(1, size)
        return self._spliced(first, second, cut), self._spliced(second, first, cut)

    @property
    def levels(self) -> int:
        """The steps of all Cells; the first of a Cell comes with the Cell's inputs."""
        return self.cells * self.steps

    def unfold(self, kept: Sequence[Genotype], level: int) -> list[Genotype]:
        """Return one genotype of each network that another choice of a step gives.

        Steps that were not reached yet are ``zero``.
        """
        k, m = divmod(level, self.steps)
        found: dict[str, Genotype] = {}
        for genotype in kept or [self._dropped()]:
            cell = genotype.cells[k]
            pairs = self._pairs_for(genotype, k) if m == 0 else [cell.inputs]
            for pair, step in product(pairs, _step_choices(m)):
                other = _with(genotype, k, _with_step(Cell(pair, cell.steps), m, step))
                found.setdefault(self.canonical(other), other)
        return list(found.values())

    def encode(self, genotype: Genotype) -> Encoded:
        """Return a row of numbers a step: the Cell's inputs, the operation, its operands."""
        nodes = cell_nodes(genotype.features, len(genotype.cells))
        return tuple(
            (
                *map(nodes.index, cell.inputs),
                operation_names().index(step.op),
                *map(step_nodes(m).index, step.inputs),
            )
            for cell in genotype.cells
            for m, step in enumerate(cell.steps)
        )

    def genotypes(self) -> Iterator[Genotype]:
        """Yield every genotype once, isomorphic ones too, in a fixed order.

        Raises UserError where that is more than a million.
        """
        self._require_small()
        all_pairs: list[tuple[_Pair, ...]] = [()]
        for k in range(self.cells):
            nodes = cell_nodes(self.features, k)
            all_pairs = [(*pairs, new) for pairs in all_pairs for new in free_pairs(nodes, pairs)]
        fillings = list(product(*(_step_choices(m) for m in range(self.steps))))
        for pairs in all_pairs:
            for steps in product(fillings, repeat=self.cells):
                yield self._made([Cell(*own) for own in zip(pairs, steps, strict=True)])

    def distinct(self) -> dict[str, Genotype]:
        """Return the first genotype of every network by its canonical name."""
        found: dict[str, Genotype] = {}
        for genotype in self.genotypes():
            found.setdefault(self.canonical(genotype), genotype)
        return found

    def _require_small(self) -> None:
        nodes = range(len(self.features), len(self.features) + self.cells)
        # Of the pairs of a Cell, those that earlier Cells used up are few: an upper bound will do.
        count = prod(n * (n - 1) // 2 for n in nodes)
        a_cell = prod(len(OPERATIONS) * (m + 2) * (m + 1) for m in range(self.steps))
        count *= a_cell**self.cells
        if count > _LARGEST:
            raise UserError(
                f"received {self.cells} Cells of {self.steps} steps over {len(self.features)} "
                f"features, {count:,} genotypes, expected at most {_LARGEST:,}: fewer Cells or "
                "steps"
            )

    def _pairs_for(self, genotype: Genotype, k: int) -> list[_Pair]:
        """Return the inputs that Cell k may have while those of the others stay."""
        pairs: list[_Pair] = [cell.inputs for cell in genotype.cells]
        return [
            pair
            for pair in combinations(cell_nodes(self.features, k), 2)
            if _allowed([*pairs[:k], pair, *pairs[k + 1 :]])
        ]

    def _spliced(self, head: Genotype, tail: Genotype, cut: int) -> Genotype:
        cells = []
        for k, (own, other) in enumerate(zip(head.cells, tail.cells, strict=True)):
            start = k * (1 + self.steps)
            pair = own.inputs if start < cut else other.inputs
            left = min(max(cut - start - 1, 0), self.steps)
            cells.append(Cell(pair, (*own.steps[:left], *other.steps[left:])))
        if not _allowed([cell.inputs for cell in cells]):
            cells = [Cell(o.inputs, c.steps) for o, c in zip(head.cells, cells, strict=True)]
        return self._made(cells)

    def _drawn(self, weights: ArchitectureWeights | None, draw: Random) -> Genotype:
        """Return a genotype drawn by ``weights``, or evenly."""
        pairs: list[_Pair] = []
        cells = []
        for k in range(self.cells):
            nodes = cell_nodes(self.features, k)
            alpha = None if weights is None else dict(zip(nodes, weights.alpha[k], strict=True))
            pairs.append(_drawn_pair(free_pairs(nodes, pairs), alpha, draw))
            steps = []
            for m in range(self.steps):
                nodes, beta, gamma = step_nodes(m), None, None
                if weights is not None:
                    beta = dict(zip(nodes, weights.beta[k][m], strict=True))
                    gamma = weights.gamma[k][m]
                inputs = _drawn_pair(list(permutations(nodes, 2)), beta, draw)
                steps.append(Step(_weighted(draw, operation_names(), gamma), inputs))
            cells.append(Cell(pairs[-1], tuple(steps)))
        return self._made(cells)

    def _dropped(self) -> Genotype:
        """Return a genotype all of whose steps are dropped."""
        zero = next(name for name, operation in OPERATIONS.items() if operation.is_zero)
        steps = (Step(zero, ("x", "y")),) * self.steps
        pairs: list[_Pair] = []
        for k in range(self.cells):
            pairs.append(free_pairs(cell_nodes(self.features, k), pairs)[0])
        return self._made([Cell(pair, steps) for pair in pairs])

    def _made(self, cells: Sequence[Cell]) -> Genotype:
        return Genotype(self.features, self.channels, self.length, tuple(cells))


def _allowed(pairs: Sequence[_Pair]) -> bool:
    """Tell whether every Cell takes something that no earlier one took (footnote 1)."""
    return all(free_pairs(pair, pairs[:k]) for k, pair in enumerate(pairs))


def _step_choices(m: int) -> list[Step]:
    return [Step(op, pair) for op in operation_names() for pair in permutations(step_nodes(m), 2)]


def _with(genotype: Genotype, k: int, cell: Cell) -> Genotype:
    cells = (*genotype.cells[:k], cell, *genotype.cells[k + 1 :])
    return Genotype(genotype.features, genotype.channels, genotype.length, cells)


def _with_step(cell: Cell, m: int, step: Step) -> Cell:
    return Cell(cell.inputs, (*cell.steps[:m], step, *cell.steps[m + 1 :]))


def _drawn_pair(
    pairs: Sequence[_Pair], identity: Mapping[str, float] | None, draw: Random
) -> _Pair:
    """Return one of ``pairs``, in proportion to the product of the Identity weights, or evenly."""
    weights = None if identity is None else [identity[x] * identity[y] for x, y in pairs]
    return _weighted(draw, pairs, weights)


def _weighted(draw: Random, choices: Sequence[_Choice], weights: Sequence[float] | None) -> _Choice:
    # Products of weights may all be too small for a float.
    return draw.choices(choices, weights if weights is not None and sum(weights) > 0 else None)[0]
