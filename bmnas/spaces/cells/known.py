"""Cells that are known by name: fusion modules of the literature, and what the paper found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bmnas.machine.errors import UserError
from bmnas.spaces.cells.genotype import Cell, Genotype, Step

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
