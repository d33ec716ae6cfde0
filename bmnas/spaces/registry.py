"""The search spaces by name, and what reads their files: the one table of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmnas.machine.errors import UserError, close
from bmnas.spaces.architecture import Architecture, GenotypeError, read_file, wrong
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.description import Description
from bmnas.spaces.ensembles.space import EnsembleSpace
from bmnas.spaces.fusions.space import FusionSpace
from bmnas.spaces.mfas.space import MFASSpace
from bmnas.spaces.mmnas.space import MMnasSpace
from bmnas.spaces.space import SearchSpace
from bmnas.spaces.trees.space import TreeSpace

if TYPE_CHECKING:
    from bmnas.spaces.fusion import Fusion

Space = type[SearchSpace[Any]]

SPACES: dict[str, Space] = {
    space.NAME: space
    for space in (CellSpace, MFASSpace, TreeSpace, FusionSpace, MMnasSpace, EnsembleSpace)
}


def register_space(space: Space) -> Space:
    """Make ``space`` known by its name and its genotype's format; also a class decorator.

    Raises UserError where another space has either.
    """
    for known in SPACES.values():
        for what, name, taken in (
            ("name", space.NAME, known.NAME),
            ("format", space.GENOTYPE.FORMAT, known.GENOTYPE.FORMAT),
        ):
            if known is not space and name == taken:
                raise UserError(f"space {space.NAME}: the {what} {name!r} is taken, use another")
    SPACES[space.NAME] = space
    return space


def space_named(name: str) -> Space:
    """Return the space called ``name``; raises UserError that lists those there are."""
    if name not in SPACES:
        known = list(SPACES)
        raise UserError(
            f"received space {name!r}, expected one of {', '.join(known)}{close(name, known)}"
        )
    return SPACES[name]


def space_of(architecture: Architecture) -> Space:
    """Return the space that ``architecture`` is of; raises UserError for one of no space."""
    for space in SPACES.values():
        if space.GENOTYPE.FORMAT == architecture.FORMAT:
            return space
    raise UserError(
        f"received a genotype of format {architecture.FORMAT!r}, which no space has; make its "
        "space known with register_space"
    )


def build_fusion(
    architecture: Architecture, channels_raw: Mapping[str, int], *, classes: int, dropout: float
) -> Fusion:
    """Return a new network of ``architecture``, see ``SearchSpace.build``."""
    space = space_of(architecture)
    return space.build(architecture, channels_raw, classes=classes, dropout=dropout)


def takes_unimodal_logits(architecture: Architecture) -> bool:
    """Tell whether the unimodal networks' logits may be added to those of ``architecture``."""
    return space_of(architecture).TAKES_UNIMODAL_LOGITS


def describe(architecture: Architecture) -> Description:
    """Return what a drawing of ``architecture`` shows."""
    return space_of(architecture).describe(architecture)


def load_architecture(path: str | Path) -> Architecture:
    """Read a genotype file of any space; raises GenotypeError with one line that names it."""
    return architecture_from_dict(read_file(path, Genotype.FORMAT), str(path))


def architecture_from_dict(data: Any, source: str = "genotype") -> Architecture:
    """Build an architecture from plain data; ``source`` is named in messages.

    Raises GenotypeError for an unknown format, and as ``from_dict`` of the format's class does.
    """
    formats = {space.GENOTYPE.FORMAT: space.GENOTYPE for space in SPACES.values()}
    name = data.get("format") if isinstance(data, dict) else None
    if name is None:
        return Genotype.from_dict(data, source)
    # What a file says may be anything, also what no dictionary takes as a key.
    if not isinstance(name, str) or name not in formats:
        expected = " or ".join(map(repr, formats))
        raise GenotypeError(f"{source}: {wrong('format', name, expected)}")
    return formats[name].from_dict(data, source)
