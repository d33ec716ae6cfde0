"""How the genotypes of each space are described for drawings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bmnas.spaces.cells.describe import describe_cells
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.description import Description
from bmnas.spaces.found import Found
from bmnas.spaces.mfas.describe import describe_mfas
from bmnas.spaces.mfas.space import MFASGenotype
from bmnas.spaces.trees.describe import describe_tree
from bmnas.spaces.trees.fusion_tree import FusionTree

_DESCRIBE: Mapping[type[Found], Callable[[Any], Description]] = {
    Genotype: describe_cells,
    MFASGenotype: describe_mfas,
    FusionTree: describe_tree,
}


def describe(found: Found) -> Description:
    """Return what a drawing of ``found`` shows."""
    return _DESCRIBE[type(found)](found)
