"""What hand-made fusions are built from: sizes, and which features of which modality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import by_modality


class Sizes(NamedTuple):
    """Channels C, length L, classes K and the dropout probability; some fusions need only some."""

    channels: int
    length: int
    classes: int
    dropout: float


def several_modalities(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the features of each modality, both in their order.

    Raises UserError where there are fewer than two modalities: nothing is to be fused then.
    """
    found = by_modality(list(names))
    if len(found) < 2:
        raise UserError(
            f"received the modalities {', '.join(found) or 'none'}, expected two or more to fuse"
        )
    return found


def last_features(names: Iterable[str]) -> tuple[str, ...]:
    """Return the last feature of each modality, of two or more."""
    return tuple(features[-1] for features in several_modalities(names).values())


def levels(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the features that meet at each level, the last ones of all modalities at the last.

    A modality with fewer features than another joins later, so that none of them is left out.
    """
    modalities = list(several_modalities(names).values())
    depth = max(len(features) for features in modalities)
    return [
        tuple(features[level - depth] for features in modalities if len(features) >= depth - level)
        for level in range(depth)
    ]
