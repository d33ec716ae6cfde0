"""What MMnas finds: a chain of operations that encodes one modality, and one that decodes another.

Standard library only; the file is JSON, see ``MMnasGenotype``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from bmnas.spaces.architecture import Architecture, by_modality, check_features, wrong
from bmnas.training.settings import Size

#: In the order of their numbers in the authors' program.
ENCODER: tuple[Literal["sa", "ffn"], ...] = ("sa", "ffn")
DECODER: tuple[Literal["sa", "rsa", "ga", "ffn"], ...] = ("sa", "rsa", "ga", "ffn")

#: The operations that a block may have, by how many there are: the decoder has relations or none.
POOLS: dict[int, tuple[str, ...]] = {
    len(pool): pool for pool in (ENCODER, tuple(op for op in DECODER if op != "rsa"), DECODER)
}

#: The end of the name of a feature whose last four channels are boxes: x1, y1, x2, y2 in pixels.
REGIONS = ".regions"

#: Blocks of a chain at most: more would be a file made to overflow something.
DEEPEST = 200

Norm = Literal["layer", "official"]


@dataclass(frozen=True)
class MMnasGenotype(Architecture):
    """Operations over the tokens of two ``features``: ``encoder`` on the first, ``decoder``.

    Tokens have ``width`` channels, attention heads ``head`` of them each, and feed-forward layers
    ``hidden`` times as many units as the width. ``norm`` is torch's LayerNorm, or that of the
    official program, which its weights need. Raises GenotypeError when it breaks a rule: other than
    two features of two modalities, a width that heads do not divide, an empty or endless chain, or
    relations where no feature has boxes.
    """

    FORMAT: ClassVar[str] = "bmnas.mmnas/1"

    features: tuple[str, ...]
    width: Size
    head: Size
    encoder: tuple[Literal["sa", "ffn"], ...]
    decoder: tuple[Literal["sa", "rsa", "ga", "ffn"], ...]
    hidden: Size = 4
    norm: Norm = "layer"
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_features(self.features)
        if len(self.features) != 2 or len(by_modality(self.features)) != 2:
            raise wrong("features", list(self.features), "two, of two modalities")
        if self.width % self.head:
            raise wrong("width", self.width, f"a multiple of head, {self.head}")
        for name, chain in (("encoder", self.encoder), ("decoder", self.decoder)):
            if not 1 <= len(chain) <= DEEPEST:
                raise wrong(name, f"{len(chain)} operations", f"from 1 to {DEEPEST}")
        if "rsa" in self.decoder and not has_boxes(self.features[1]):
            place = f"decoder[{self.decoder.index('rsa')}]"
            expected = f"another operation, as {self.features[1]} has no boxes to relate"
            raise wrong(place, "rsa", f"{expected}: a feature called regions has")

    def live_features(self) -> tuple[str, ...]:
        """Return both features."""
        return self.features

    def summary(self) -> str:
        """Return its size in a line of text."""
        return (
            f"MMnas: encoder of {len(self.encoder)} and decoder of {len(self.decoder)} operations, "
            f"tokens of {self.width} channels"
        )


def has_boxes(feature: str) -> bool:
    """Tell whether the last channels of ``feature`` are boxes."""
    return feature.endswith(REGIONS)
