"""Cells that are known by name, and the pairs of features that they are put on.

Counterparts of Tables 6 and 7 of the BM-NAS paper, which compare its Cells with Sum, ConcatFC, MHA
and AoA, and its pairs of features with late and random ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from random import Random

from bmnas.machine.errors import UserError, close
from bmnas.spaces.cells.genotype import Cell, Genotype, Step, cell_nodes, free_pairs
from bmnas.spaces.fusions.features import last_features

Pairs = Sequence[tuple[str, str]]

#: The steps of known fusion modules: DARTS' sum, MFAS' concatenation, Transformer, AoANet.
FUSION_MODULES: Mapping[str, tuple[Step, ...]] = {
    "sum": (Step("sum", ("x", "y")),),
    "concat_fc": (Step("concat_fc", ("x", "y")),),
    "mha2": (Step("attention", ("x", "y")), Step("attention", ("x", "y"))),
    "aoa": (Step("attention", ("x", "y")), Step("linear_glu", ("x", "step1"))),
}

#: Cells that the paper found, those that it tells in words: MM-IMDB's Image_2 and Text_0 by
#: ConcatFC, then that Cell and Text_0 by LinearGLU. Here ``x`` and ``y`` are the two features.
#: The Cells of NTU and EgoGesture are published as pictures alone.
FOUND_CELLS: Mapping[str, tuple[Cell, ...]] = {
    "mmimdb": (
        Cell(("x", "y"), (Step("concat_fc", ("x", "y")),)),
        Cell(("y", "cell1"), (Step("linear_glu", ("x", "y")),)),
    ),
}


def known_genotype(name: str, features: Sequence[str], *, channels: int, length: int) -> Genotype:
    """Return a known fusion module, or Cells that the paper found, over two ``features``.

    Raises UserError when ``name`` is in neither ``FUSION_MODULES`` nor ``FOUND_CELLS``.
    """
    modules = {module: (Cell(("x", "y"), steps),) for module, steps in FUSION_MODULES.items()}
    known = {**modules, **FOUND_CELLS}
    if name not in known:
        raise UserError(f"received genotype {name!r}, expected one of {', '.join(known)}")
    x, y = features
    nodes = {"x": x, "y": y}
    cells = []
    for cell in known[name]:
        first, second = (nodes.get(node, node) for node in cell.inputs)
        cells.append(Cell((first, second), cell.steps))
    return Genotype((x, y), channels, length, tuple(cells))


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
