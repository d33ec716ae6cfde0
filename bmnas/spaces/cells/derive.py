"""From relaxed weights to a genotype (BM-NAS, Eq. 3 and 11) and back; standard library only.

Nodes are numbered as in the paper: of a Cell's inputs, features first, then Cells; of a step's
inputs, x and y first, then steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bmnas.spaces.cells.genotype import Cell, Genotype, Step, cell_nodes, free_pairs, step_nodes
from bmnas.spaces.cells.operations import operation_names


@dataclass(frozen=True)
class ArchitectureWeights:
    """The relaxed choices as probabilities, plain data for files, plots and derivation.

    ``alpha[k]`` holds the F+k Identity weights of Cell k's edges, features first, then Cells;
    ``beta[k][m]`` the 2+m Identity weights of a step's edges, x and y first, then steps;
    ``gamma[k][m]`` the weights of the operations in the order of ``OPERATIONS``.
    """

    alpha: list[list[float]]
    beta: list[list[list[float]]]
    gamma: list[list[list[float]]]


def derive_genotype(
    alpha: Sequence[Sequence[float]],
    beta: Sequence[Sequence[Sequence[float]]],
    gamma: Sequence[Sequence[Sequence[float]]],
    *,
    features: Sequence[str],
    channels: int,
    length: int,
) -> Genotype:
    """Return the genotype that the relaxed weights stand for, see ``ArchitectureWeights``.

    Every Cell takes its best pair of inputs (Eq. 3), every step its two best inputs and its best
    operation (Eq. 11).
    """
    nodes = cell_nodes(features, len(alpha))
    cells = []
    for (x, y), betas, gammas in zip(cell_inputs(alpha), beta, gamma, strict=True):
        steps = []
        for m, (edges, weights) in enumerate(zip(betas, gammas, strict=True)):
            first, second = step_inputs(edges)
            # max() keeps the first of equals.
            best = max(range(len(weights)), key=weights.__getitem__)
            operands = step_nodes(m)
            steps.append(Step(operation_names()[best], (operands[first], operands[second])))
        cells.append(Cell((nodes[x], nodes[y]), tuple(steps)))
    return Genotype(tuple(features), channels, length, tuple(cells))


def cell_inputs(alpha: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Return the pair i < j of nodes that each Cell takes.

    The pair with the largest w(i,k) * w(j,k) (Eq. 3) of which at least one was not taken by an
    earlier Cell (footnote 1); of equals, the lexicographically smallest.
    """
    pairs: list[tuple[int, int]] = []
    for weights in alpha:
        free = free_pairs(range(len(weights)), pairs)
        # They come lexicographically and max() keeps the first of equals.
        pairs.append(max(free, key=lambda pair: weights[pair[0]] * weights[pair[1]]))
    return pairs


def step_inputs(weights: Sequence[float]) -> tuple[int, int]:
    """Return the two nodes with the largest Identity weight, the larger first.

    Of equals the earlier node comes first (footnote 2: steps may share their inputs).
    """
    first, second = sorted(range(len(weights)), key=lambda node: (-weights[node], node))[:2]
    return first, second


def one_hot(genotype: Genotype) -> ArchitectureWeights:
    """Return the weights with which a supernet computes the network of ``genotype``.

    It knows no order of operands, as both inputs of its operations are one sum.
    """
    alpha, beta, gamma = [], [], []
    for k, cell in enumerate(genotype.cells):
        read = cell.inputs if cell.reads_y() else cell.inputs[:1]
        alpha.append([float(node in read) for node in cell_nodes(genotype.features, k)])
        beta.append(
            [[float(n in step.inputs) for n in step_nodes(m)] for m, step in enumerate(cell.steps)]
        )
        gamma.append([[float(n == step.op) for n in operation_names()] for step in cell.steps])
    return ArchitectureWeights(alpha, beta, gamma)
