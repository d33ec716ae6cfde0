"""Known fusion modules as genotypes: which pairs of features, each fused by the same module.

Counterparts of Tables 6 and 7 of the BM-NAS paper, which compare the operations of its Cells with
Sum, ConcatFC, MHA and AoA, and its pairs of features with late and random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from random import Random

from bmnas.machine.errors import UserError, close
from bmnas.spaces.cells.genotype import Cell, Genotype, cell_nodes, free_pairs
from bmnas.spaces.cells.known import FUSION_MODULES
from bmnas.spaces.fusions.features import last_features

Pairs = Sequence[tuple[str, str]]


def module_genotype(
    module: str,
    pairs: Pairs,
    features: Sequence[str],
    *,
    channels: int,
    length: int,
    pairs_name: str,
) -> Genotype:
    """Return a genotype with a Cell for each of ``pairs``, all of them the known ``module``.

    ``pairs`` name ``features`` and earlier Cells. ``pairs_name`` goes into the provenance, by
    which `bmnas compare` calls the networks. Raises UserError for an unknown module.
    """
    if module not in FUSION_MODULES:
        known = list(FUSION_MODULES)
        raise UserError(
            f"received module {module!r}, expected one of {', '.join(known)}{close(module, known)}"
        )
    cells = tuple(Cell(pair, FUSION_MODULES[module]) for pair in pairs)
    provenance = {"strategy": "none", "fusion": f"{module}, {pairs_name} pairs"}
    return Genotype(tuple(features), channels, length, cells, provenance)


def searched_pairs(genotype: Genotype) -> list[tuple[str, str]]:
    """Return the inputs of the Cells of a genotype that was found."""
    return [cell.inputs for cell in genotype.cells]


def searched_cells(genotype: Genotype, pairs: Pairs, *, pairs_name: str) -> Genotype:
    """Return the Cells of a genotype that was found on other ``pairs``, as many as there are.

    More pairs than Cells take the Cells again from the first one on.
    """
    cells = tuple(
        Cell(pair, cell.steps) for pair, cell in zip(pairs, cycle(genotype.cells), strict=False)
    )
    provenance = {"strategy": "none", "fusion": f"searched, {pairs_name} pairs"}
    return Genotype(genotype.features, genotype.channels, genotype.length, cells, provenance)


def late_pairs(features: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs that join the last features of all modalities, one after another.

    Two modalities are one Cell; each further one is joined with the Cell before. Inputs stand in
    node order, features first. Raises UserError for fewer than two modalities.
    """
    first, second, *others = last_features(features)
    joined = [(name, f"cell{k + 1}") for k, name in enumerate(others)]
    return [(first, second), *joined]


def random_pairs(features: Sequence[str], cells: int, seed: int) -> list[tuple[str, str]]:
    """Return ``cells`` pairs drawn evenly from those that a derivation may take (footnote 1).

    Features and earlier Cells are drawn alike; one of a pair at least is new.
    """
    draw = Random(seed)
    pairs: list[tuple[str, str]] = []
    for k in range(cells):
        pairs.append(draw.choice(free_pairs(cell_nodes(features, k), pairs)))
    return pairs
