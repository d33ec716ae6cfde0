"""Sequences that are known by name: MCAN, and those that the authors of MMnas found.

``guided`` is MCAN with guided attention first in each of its decoder's units: what relates regions
then knows the words. The decoders that the authors found for answers and grounding begin with it
too. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.spaces.mmnas.genotype import MMnasGenotype

#: A letter an operation: encoder, decoder. The last three are the networks of ``arch/*.json``.
SEQUENCES: dict[str, tuple[str, str]] = {
    "mcan": ("SF" * 6, "SGF" * 6),
    "mcan_rsa": ("SF" * 6, "RGF" * 6),
    "guided": ("SF" * 6, "GSF" * 6),
    "guided_rsa": ("SF" * 6, "GRF" * 6),
    "vqa": ("SSSSFFFFSFFF", "GGFFGFRGFGRFRSFRGF"),
    "itm": ("SSFFFSFSFFFF", "SGGRSGRGGGGFGGRSGR"),
    "vgd": ("SFFSFFFFFFFS", "GGGGGGFGRRGFRGGRGR"),
}

#: Of which there is one of every length.
CYCLES = ("mcan", "mcan_rsa", "guided", "guided_rsa")

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


def cycled(name: str, encoder: int, decoder: int) -> tuple[str, ...]:
    """Return the operations of one of ``CYCLES`` in any length, the encoder's first.

    The search of the authors begins at ``mcan_rsa``, of 12 and 18 operations.
    """
    chains = zip(SEQUENCES[name], (encoder, decoder), strict=True)
    return tuple(
        _LETTERS[letter] for chain, count in chains for letter in islice(cycle(chain), count)
    )
