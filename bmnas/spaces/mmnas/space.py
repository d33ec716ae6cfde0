"""The space of MMnas: which operation each block of an encoder and of a decoder has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import Architecture, by_modality
from bmnas.spaces.description import Description, Node, feature_nodes
from bmnas.spaces.mmnas.genotype import (
    DECODER,
    ENCODER,
    POOLS,
    MMnasGenotype,
    Norm,
    has_boxes,
)
from bmnas.spaces.mmnas.known import CYCLES, cycled, known_sequence
from bmnas.spaces.space import Encoded, SearchSpace

if TYPE_CHECKING:
    from bmnas.spaces.fusion import Fusion

_WORDED = ("text", "tokens")
_NAMES = {
    "sa": "self-attention",
    "rsa": "relation self-attention",
    "ga": "guided attention",
    "ffn": "feed forward",
}


@dataclass(frozen=True)
class MMnasSpace(SearchSpace[MMnasGenotype]):
    """Chains of ``encoder`` and ``decoder`` blocks over two ``features``, each of any operation.

    Only a feature with boxes can have relations. ``width``, ``head``, ``hidden`` and ``norm`` are
    those of the genotypes, ``final_width`` is what is trained in the end; 0: as wide. Raises
    UserError for sizes that no genotype has.
    """

    NAME: ClassVar[str] = "mmnas"
    GENOTYPE: ClassVar[type[Architecture]] = MMnasGenotype
    READS_TOKENS: ClassVar[bool] = True
    FINDS_REGIONS: ClassVar[bool] = True

    features: tuple[str, ...]
    encoder: int = 4
    decoder: int = 6
    width: int = 64
    head: int = 16
    hidden: int = 4
    norm: Norm = "layer"
    final_width: int = 0

    def __post_init__(self) -> None:
        self.final(self.start())

    @classmethod
    def of(cls, features: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """Return the space over one feature of each of two modalities.

        Modalities of words come first, as ``settings["types"]`` tells by name; else they are in
        their order. Of a modality it takes the feature with boxes, or the last one.
        """
        types = settings.get("types", {})
        groups = by_modality(features)
        names = sorted(groups, key=lambda name: types.get(name) not in _WORDED)
        if len(names) < 2:
            raise UserError(
                f"space mmnas: received the modality {', '.join(names)} alone, expected two"
            )
        read = [sorted(groups[name], key=has_boxes)[-1] for name in names[:2]]
        return super().of(read, settings)

    @classmethod
    def build(
        cls,
        genotype: MMnasGenotype,
        channels_raw: Mapping[str, int],
        *,
        classes: int,
        dropout: float,
    ) -> Fusion:
        """Return the network of the genotype."""
        from bmnas.spaces.mmnas.network import MMnasNetwork

        return MMnasNetwork(genotype, channels_raw, classes=classes, dropout=dropout)

    @classmethod
    def describe(cls, genotype: MMnasGenotype) -> Description:
        """Return both chains; guided attention also reads the end of the encoder."""
        nodes = feature_nodes(genotype.features, genotype.features)
        ends: list[str] = []
        chains = ("encoder", genotype.encoder), ("decoder", genotype.decoder)
        for (group, chain), below in zip(chains, genotype.features, strict=True):
            for number, operation in enumerate(chain, start=1):
                reads = (ends[0], below) if operation == "ga" else (below,)
                name = f"{group}/{operation} {number}"
                label = _NAMES[operation]
                nodes.append(Node(name, label, group=group, reads=reads, ordered=len(reads) > 1))
                below = name
            ends.append(below)
        head = Node("head", "Head", "sum over tokens, linear", "output", reads=tuple(ends))
        return Description(genotype.summary(), genotype.features, (*nodes, head))

    @property
    def pools(self) -> tuple[tuple[str, ...], ...]:
        """The operations that each block may have, block by block, the encoder's first."""
        second = POOLS[4 if has_boxes(self.features[1]) else 3]
        return (ENCODER,) * self.encoder + (second,) * self.decoder

    def made(self, operations: Sequence[str]) -> MMnasGenotype:
        """Return the genotype with these ``operations``, block by block, the encoder's first."""
        encoder, decoder = operations[: self.encoder], operations[self.encoder :]
        return MMnasGenotype.from_dict(
            {
                "format": MMnasGenotype.FORMAT,
                "features": self.features,
                "width": self.width,
                "head": self.head,
                "encoder": encoder,
                "decoder": decoder,
                "hidden": self.hidden,
                "norm": self.norm,
            },
            "space mmnas",
        )

    def start(self) -> MMnasGenotype:
        """Return MCAN in these sizes, with relations where the feature has boxes."""
        return self.cycles()[0]

    def cycles(self) -> list[MMnasGenotype]:
        """Return MCAN, and MCAN with guided attention first, in these sizes.

        With relations where the feature has boxes; the latter without them too, which has learned
        as much.
        """
        boxes = has_boxes(self.features[1])
        names = ("mcan_rsa", "guided_rsa", "guided") if boxes else ("mcan", "guided")
        return [self.made(cycled(name, self.encoder, self.decoder)) for name in names]

    def known(self, name: str) -> MMnasGenotype:
        """Return the sequence ``name`` in this width; one of ``CYCLES`` is as long as those here.

        Raises UserError for an unknown name, GenotypeError for features that it cannot have.
        """
        if name in CYCLES:
            found = self.made(cycled(name, self.encoder, self.decoder))
            return found.with_provenance({"fusion": name})
        sizes: dict[str, Any] = {"hidden": self.hidden, "norm": self.norm}
        return known_sequence(name, self.features, width=self.width, head=self.head, **sizes)

    def sample(self, draw: Random) -> MMnasGenotype:
        """Return an operation for each block, each as likely."""
        return self.made([draw.choice(pool) for pool in self.pools])

    def neighbours(self, genotype: MMnasGenotype) -> list[MMnasGenotype]:
        """Return the genotypes with another operation in one block."""
        own = operations_of(genotype)
        return [
            self.made([*own[:place], other, *own[place + 1 :]])
            for place, pool in enumerate(self.pools)
            for other in pool
            if other != own[place]
        ]

    def final(self, genotype: MMnasGenotype) -> MMnasGenotype:
        """Return the genotype in the final width."""
        return dataclasses.replace(genotype, width=self.final_width or genotype.width)

    def encode(self, genotype: MMnasGenotype) -> Encoded:
        """Return a row a block: whether it is the decoder's, and which operation it has."""
        return (
            *((0, ENCODER.index(operation)) for operation in genotype.encoder),
            *((1, DECODER.index(operation)) for operation in genotype.decoder),
        )


def operations_of(genotype: MMnasGenotype) -> tuple[str, ...]:
    """Return the operations of all blocks, the encoder's first."""
    return (*genotype.encoder, *genotype.decoder)
