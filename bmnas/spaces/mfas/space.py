"""The space of MFAS: chains of fusion layers, each over one feature of every modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, ClassVar

from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import Architecture, by_modality
from bmnas.spaces.description import Description, Node, leaf_nodes
from bmnas.spaces.mfas.genotype import ACTIVATIONS, Layer, MFASGenotype, layer_choices
from bmnas.spaces.space import Encoded, SearchSpace

if TYPE_CHECKING:
    from bmnas.spaces.fusion import Fusion

_LABELS = {"relu": "ReLU", "sigmoid": "sigmoid"}


@dataclass(frozen=True)
class MFASSpace(SearchSpace[MFASGenotype]):
    """Chains of one to ``levels`` layers over ``features`` of two modalities or more.

    Candidates have layers of ``inner_size`` units, what is trained in the end of
    ``final_inner_size``. ``scalars`` weighs the modalities of a layer by learned scalars. Raises
    UserError where there is one modality.
    """

    NAME: ClassVar[str] = "mfas"
    GENOTYPE: ClassVar[type[Architecture]] = MFASGenotype
    READS_MEANS: ClassVar[bool] = True
    # Its networks have heads of the modalities already.
    TAKES_UNIMODAL_LOGITS: ClassVar[bool] = False

    features: tuple[str, ...]
    length: int = 8
    levels: int = 4
    inner_size: int = 16
    final_inner_size: int = 256
    scalars: bool = False

    def __post_init__(self) -> None:
        modalities = by_modality(self.features)
        if len(modalities) < 2:
            raise UserError(
                f"space mfas: received the modality {', '.join(modalities)} alone, expected two or "
                "more to fuse"
            )

    @classmethod
    def build(
        cls,
        genotype: MFASGenotype,
        channels_raw: Mapping[str, int],
        *,
        classes: int,
        dropout: float,
    ) -> Fusion:
        """Return the network with a head for the layers and one for each modality."""
        from bmnas.spaces.mfas.network import MFASNetwork

        return MFASNetwork(genotype, channels_raw, classes=classes, dropout=dropout)

    @classmethod
    def build_candidate(
        cls,
        genotype: MFASGenotype,
        channels_raw: Mapping[str, int],
        *,
        classes: int,
        dropout: float,
    ) -> Fusion:
        """Return the network without the heads of the modalities: the layers alone decide."""
        from bmnas.spaces.mfas.network import MFASNetwork

        return MFASNetwork(genotype, channels_raw, classes=classes, dropout=dropout, heads=False)

    @classmethod
    def describe(cls, genotype: MFASGenotype) -> Description:
        """Return the layers, each with its features, and the classifier."""
        read = [name for layer in genotype.layers for name in layer.inputs]
        leaves = leaf_nodes((*read, *genotype.last_features()))
        names = iter([leaf.name for leaf in leaves])
        fusions: list[Node] = []
        below: tuple[str, ...] = ()
        for number, layer in enumerate(genotype.layers, start=1):
            name, note = f"fusion {number}", f"linear → {_LABELS[layer.activation]}"
            own = tuple(next(names) for _ in layer.inputs)
            fusions.append(Node(name, name, note, reads=(*own, *below)))
            below = (name,)
        note, reads = "sum of linear heads", (*names, *below)
        head = Node("classifier", "Classifier", note, "output", reads=reads)
        return Description(genotype.summary(), genotype.features, (*leaves, *fusions, head))

    def sample(self, draw: Random) -> MFASGenotype:
        """Return a chain of one to ``levels`` layers, each number as likely."""
        choices = layer_choices(self.features)
        return self._made(draw.choices(choices, k=draw.randint(1, self.levels)))

    def neighbours(self, genotype: MFASGenotype) -> list[MFASGenotype]:
        """Return the chains with another layer somewhere, one layer more, or the last one less."""
        layers = genotype.layers
        changed = [
            other
            for level in range(min(len(layers) + 1, self.levels))
            for other in self.unfold([genotype], level)
            if other.layers != layers
        ]
        return [*changed, self._made(layers[:-1])] if len(layers) > 1 else changed

    def unfold(self, kept: Sequence[MFASGenotype], level: int) -> list[MFASGenotype]:
        """Return each of ``kept`` with each possible layer as its layer ``level``.

        The layer is appended where there is none yet, and replaced where there is one. Chains that
        come out alike are one. Of 15 and 32 layers there are up to 480.
        """
        choices = layer_choices(self.features)
        chains = [genotype.layers for genotype in kept] or [()]
        merged = ((*old[:level], new, *old[level + 1 :]) for old in chains for new in choices)
        return [self._made(layers) for layers in dict.fromkeys(merged)]

    def encode(self, genotype: MFASGenotype) -> Encoded:
        """Return a row a layer: which feature of each modality, which activation."""
        groups = list(by_modality(self.features).values())
        return tuple(
            (
                *(group.index(name) for group, name in zip(groups, layer.inputs, strict=True)),
                ACTIVATIONS.index(layer.activation),
            )
            for layer in genotype.layers
        )

    def final(self, genotype: MFASGenotype) -> MFASGenotype:
        """Return the chain with layers of the final size."""
        return replace(genotype, inner_size=self.final_inner_size)

    def _made(self, layers: Sequence[Layer]) -> MFASGenotype:
        return MFASGenotype(
            self.features, self.length, self.inner_size, tuple(layers), self.scalars
        )
