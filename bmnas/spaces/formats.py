"""The formats of genotype files: one a search space. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.found import Found, read_found
from bmnas.spaces.mfas.space import MFASGenotype
from bmnas.spaces.plain_data import GenotypeError, wrong
from bmnas.spaces.trees.fusion_tree import FusionTree

FORMATS: Mapping[str, type[Found]] = {
    space.FORMAT: space for space in (Genotype, MFASGenotype, FusionTree)
}


def load_found(path: str | Path) -> Found:
    """Read a genotype file of any space; raises GenotypeError with one line that names it."""
    return found_from_dict(read_found(path, Genotype.FORMAT), str(path))


def found_from_dict(data: Any, source: str = "genotype") -> Found:
    """Build what a search found from plain data; ``source`` is named in messages.

    Raises GenotypeError for an unknown format, and as ``from_dict`` of the format's class does.
    """
    name = data.get("format") if isinstance(data, dict) else None
    # What a file says may be anything, also what no dictionary takes as a key.
    space = FORMATS.get(name) if isinstance(name, str) else None
    if space is not None:
        return space.from_dict(data, source)
    if name is None:
        return Genotype.from_dict(data, source)
    expected = " or ".join(repr(known) for known in FORMATS)
    raise GenotypeError(f"{source}: {wrong('format', name, expected)}")
