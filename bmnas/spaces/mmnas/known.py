"""Sequences that are known by name: MCAN, and those that the authors of MMnas found.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.spaces.mmnas.genotype import MMnasGenotype

#: A letter an operation: encoder, decoder. The last three are the networks of ``arch/*.json``.
SEQUENCES: dict[str, tuple[str, str]] = {
    "mcan": ("SF" * 6, "SGF" * 6),
    "mcan_rsa": ("SF" * 6, "RGF" * 6),
    "vqa": ("SSSSFFFFSFFF", "GGFFGFRGFGRFRSFRGF"),
    "itm": ("SSFFFSFSFFFF", "SGGRSGRGGGGFGGRSGR"),
    "vgd": ("SFFSFFFFFFFS", "GGGGGGFGRRGFRGGRGR"),
}

#: Of which there is one of every length.
CYCLES = ("mcan", "mcan_rsa")

_LETTERS = {"S": "sa", "R": "rsa", "G": "ga", "F": "ffn"}
#: Of the networks of the paper.
_WIDTH, _HEAD = 512, 64


def known_sequence(
    name: str, features: Sequence[str], *, width: int = _WIDTH, head: int = _HEAD, **shape: Any
) -> MMnasGenotype:
    """Return the sequence ``name`` over the two ``features``; ``shape`` has its other sizes.

    Raises UserError for an unknown name, GenotypeError for features that it cannot have.
    """
    if name not in SEQUENCES:
        known = list(SEQUENCES)
        raise UserError(
            f"received sequence {name!r}, expected one of {', '.join(known)}{close(name, known)}"
        )
    encoder, decoder = SEQUENCES[name]
    return MMnasGenotype.from_dict(
        {
            "format": MMnasGenotype.FORMAT,
            "features": list(features),
            "width": width,
            "head": head,
            "encoder": [_LETTERS[letter] for letter in encoder],
            "decoder": [_LETTERS[letter] for letter in decoder],
            **shape,
            "provenance": {"fusion": name},
        },
        f"sequence {name}",
    )


def mcan(encoder: int, decoder: int, *, relations: bool) -> tuple[list[str], list[str]]:
    """Return MCAN's operations, with ``relations`` in the place of self-attention, in any length.

    The search of the authors begins at the one with relations, of 12 and 18 operations.
    """
    cycles = ("sa", "ffn"), ("rsa" if relations else "sa", "ga", "ffn")
    first, second = (
        [cycle[number % len(cycle)] for number in range(count)]
        for cycle, count in zip(cycles, (encoder, decoder), strict=True)
    )
    return first, second
