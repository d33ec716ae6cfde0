"""The space of a table: every genotype that a search of N Cells and M steps could yield."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations, product
from math import prod

from bmnas.machine.errors import UserError
from bmnas.spaces.cells.canonical import canonical
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.operations import OPERATIONS, operation_names

_LARGEST = 1_000_000

_Pairs = tuple[tuple[str, str], ...]
_Steps = tuple[Step, ...]


@dataclass(frozen=True)
class Space:
    """All genotypes over ``features`` with N ``cells`` of M ``steps``, as they can be derived.

    A Cell takes two earlier nodes in node order, not both of which an earlier Cell took; a step two
    different earlier nodes of its Cell in either order and any operation of the pool. Raises
    UserError where that is more than a million genotypes.
    """

    features: tuple[str, ...]
    cells: int
    steps: int
    channels: int
    length: int

    def __post_init__(self) -> None:
        nodes = range(len(self.features), len(self.features) + self.cells)
        # Of the pairs of a Cell, those that earlier Cells used up are few: an upper bound will do.
        count = prod(n * (n - 1) // 2 for n in nodes)
        count *= prod(len(OPERATIONS) * (m + 2) * (m + 1) for m in range(self.steps)) ** self.cells
        if count > _LARGEST:
            raise UserError(
                f"received {self.cells} Cells of {self.steps} steps over {len(self.features)} "
                f"features, {count:,} genotypes, expected at most {_LARGEST:,}: fewer Cells or "
                "steps"
            )

    def genotypes(self) -> Iterator[Genotype]:
        """Yield every genotype once, isomorphic ones too, in a fixed order."""
        for pairs in self._cell_pairs:
            for steps in product(product(*self._steps), repeat=self.cells):
                yield self._genotype(pairs, steps)

    def distinct(self) -> dict[str, Genotype]:
        """Return the first genotype of every network by its canonical name."""
        found: dict[str, Genotype] = {}
        for genotype in self.genotypes():
            found.setdefault(canonical(genotype), genotype)
        return found

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """Return the genotypes that differ from ``genotype`` in one choice.

        A choice is a Cell's pair of inputs, a step's pair of inputs, or a step's operation.
        """
        pairs = tuple(cell.inputs for cell in genotype.cells)
        steps = tuple(cell.steps for cell in genotype.cells)
        found = [
            self._genotype(others, steps)
            for others in self._cell_pairs
            if sum(new != old for new, old in zip(others, pairs, strict=True)) == 1
        ]
        for k, filling in enumerate(steps):
            for m, step in enumerate(filling):
                for other in self._steps[m]:
                    if (other.op == step.op) != (other.inputs == step.inputs):
                        changed = (*filling[:m], other, *filling[m + 1 :])
                        found.append(self._genotype(pairs, (*steps[:k], changed, *steps[k + 1 :])))
        return found

    def empty(self) -> Genotype:
        """Return a genotype all of whose steps are ``zero``."""
        zero = next(name for name, operation in OPERATIONS.items() if operation.is_zero)
        steps = tuple(Step(zero, ("x", "y")) for _ in range(self.steps))
        return self._genotype(self._cell_pairs[0], [steps] * self.cells)

    def choices(self, genotype: Genotype, k: int, m: int) -> list[Genotype]:
        """Return the genotypes that differ in nothing but step m of Cell k, itself included.

        The first step of a Cell, m = 0, comes with the Cell's pair of inputs.
        """
        pairs = tuple(cell.inputs for cell in genotype.cells)
        steps = [cell.steps for cell in genotype.cells]
        around = [
            others
            for others in self._cell_pairs
            if others == pairs
            or (m == 0 and others[:k] == pairs[:k] and others[k + 1 :] == pairs[k + 1 :])
        ]
        found = []
        for others, step in product(around, self._steps[m]):
            changed = (*steps[k][:m], step, *steps[k][m + 1 :])
            found.append(self._genotype(others, [*steps[:k], changed, *steps[k + 1 :]]))
        return found

    @cached_property
    def _cell_pairs(self) -> list[_Pairs]:
        found: list[_Pairs] = [()]
        for k in range(self.cells):
            nodes = [*self.features, *(f"cell{n + 1}" for n in range(k))]
            found = [
                (*pairs, pair)
                for pairs in found
                for pair in combinations(nodes, 2)
                if not {name for taken in pairs for name in taken}.issuperset(pair)
            ]
        return found

    @cached_property
    def _steps(self) -> list[list[Step]]:
        nodes = ["x", "y", *(f"step{m + 1}" for m in range(self.steps))]
        return [
            [Step(op, pair) for op in operation_names() for pair in permutations(nodes[: m + 2], 2)]
            for m in range(self.steps)
        ]

    def _genotype(self, pairs: _Pairs, steps: Sequence[_Steps]) -> Genotype:
        cells = tuple(Cell(pair, own) for pair, own in zip(pairs, steps, strict=True))
        return Genotype(self.features, self.channels, self.length, cells)
