"""From relaxed weights to a genotype (BM-NAS, Eq. 3 and 11); pure functions, standard library only.

Nodes are numbered as in the paper: of a Cell's inputs, features first, then Cells; of a step's
inputs, x and y first, then steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.operations import operation_names


def derive_genotype(
    alpha: Sequence[Sequence[float]],
    beta: Sequence[Sequence[Sequence[float]]],
    gamma: Sequence[Sequence[Sequence[float]]],
    *,
    features: Sequence[str],
    channels: int,
    length: int,
) -> Genotype:
    """Return the genotype that the relaxed weights stand for.

    ``alpha[k]`` holds F+k Identity weights, ``beta[k][m]`` 2+m, ``gamma[k][m]`` one weight for
    each of ``OPERATIONS``, as in ``supernet.ArchitectureWeights``. Every Cell takes its best pair
    of inputs (Eq. 3), every step its two best inputs and its best operation (Eq. 11).
    """
    nodes = [*features, *(f"cell{k + 1}" for k in range(len(alpha)))]
    pairs = cell_inputs(alpha)
    cells = []
    for pair, betas, gammas in zip(pairs, beta, gamma, strict=True):
        steps = []
        for edges, weights in zip(betas, gammas, strict=True):
            inputs = step_inputs(edges)
            names = (_step_node(inputs[0]), _step_node(inputs[1]))
            steps.append(Step(operation_names()[_argmax(weights)], names))
        cells.append(Cell((nodes[pair[0]], nodes[pair[1]]), tuple(steps)))
    return Genotype(tuple(features), channels, length, tuple(cells))


def cell_inputs(alpha: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Return the pair i < j of nodes that each Cell takes.

    The pair with the largest w(i,k) * w(j,k) (Eq. 3) of which at least one was not taken by an
    earlier Cell (footnote 1); of equals, the lexicographically smallest.
    """
    taken: set[int] = set()
    pairs = []
    for weights in alpha:
        free = [p for p in combinations(range(len(weights)), 2) if not taken.issuperset(p)]
        # combinations() yields lexicographically and max() keeps the first of equals.
        best = max(free, key=lambda pair: weights[pair[0]] * weights[pair[1]])
        taken.update(best)
        pairs.append(best)
    return pairs


def step_inputs(weights: Sequence[float]) -> tuple[int, int]:
    """Return the two nodes with the largest Identity weight, the larger first.

    Of equals the earlier node comes first (footnote 2: steps may share their inputs).
    """
    first, second = sorted(range(len(weights)), key=lambda node: (-weights[node], node))[:2]
    return first, second


def _argmax(weights: Sequence[float]) -> int:
    return max(range(len(weights)), key=lambda node: weights[node])


def _step_node(number: int) -> str:
    return ("x", "y")[number] if number < 2 else f"step{number - 1}"
