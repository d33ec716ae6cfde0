"""The hand-made fusions as a space: an architecture is one of them by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from bmnas.machine.errors import at, close
from bmnas.spaces.architecture import Architecture, GenotypeError, parsed
from bmnas.spaces.description import Description, Node
from bmnas.spaces.space import Encoded, SearchSpace
from bmnas.training.settings import Size

if TYPE_CHECKING:
    from bmnas.spaces.fusion import Fusion


#: The one that has nothing to learn: the weighted sum of what the unimodal networks say.
NO_FUSION = "weighted_logits"


@dataclass(frozen=True)
class NamedFusion(Architecture):
    """A hand-made fusion: its name, channels C and length L.

    The name is in ``bmnas.spaces.fusions.table``, or ``NO_FUSION``.

    It has no features of its own: it takes those of the task. Raises GenotypeError for a name that
    there is not and for sizes out of range.
    """

    FORMAT: ClassVar[str] = "bmnas.fusion/1"
    SEARCHED: ClassVar[bool] = False

    name: str
    channels: Size
    length: Size
    features: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        known = [*fusion_names(of_pairs=True), NO_FUSION]
        # A list: what a file says may be anything.
        if self.name not in known:
            hint = close(str(self.name), known)
            raise GenotypeError(
                f"received fusion {self.name!r}, expected one of {', '.join(known)}{hint}"
            )

    def live_features(self) -> tuple[str, ...]:
        """Return nothing: which features it reads is told by those that there are."""
        return ()

    def summary(self) -> str:
        """Return its name and its sizes."""
        return f"fusion {self.name}, C = {self.channels} channels, L = {self.length} positions"

    @classmethod
    def parse(cls, data: Any) -> NamedFusion:
        """Build it from plain data; files of earlier versions have neither format nor features."""
        if isinstance(data, dict) and "format" not in data:
            data = {"format": cls.FORMAT, **data}
        return parsed(cls, data, cls.FORMAT)


@dataclass(frozen=True)
class FusionSpace(SearchSpace[NamedFusion]):
    """All hand-made fusions, each with C ``channels`` over features of L ``length``."""

    NAME: ClassVar[str] = "fusions"
    GENOTYPE: ClassVar[type[Architecture]] = NamedFusion
    # A hand-made fusion stays what it is.
    TAKES_UNIMODAL_LOGITS: ClassVar[bool] = False

    features: tuple[str, ...]
    channels: int = 64
    length: int = 8

    @classmethod
    def build(
        cls, genotype: NamedFusion, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> Fusion:
        """Return the fusion's network; raises UserError where it cannot have these features."""
        from bmnas.spaces.fusions.features import Sizes
        from bmnas.spaces.fusions.late_fusion import NoFusion
        from bmnas.spaces.fusions.table import FUSIONS, OF_PAIRS

        sizes = Sizes(genotype.channels, genotype.length, classes, dropout)
        with at(f"fusion {genotype.name}"):
            known = {**FUSIONS, **OF_PAIRS, NO_FUSION: NoFusion}
            return known[genotype.name](channels_raw, sizes)

    @classmethod
    def describe(cls, genotype: NamedFusion) -> Description:
        """Return a single node."""
        node = Node("fusion", genotype.name, "hand-made fusion", "output")
        return Description(genotype.summary(), (), (node,))

    def sample(self, draw: Random) -> NamedFusion:
        """Return one of them."""
        return self._made(draw.choice(fusion_names()))

    def neighbours(self, genotype: NamedFusion) -> list[NamedFusion]:
        """Return all others."""
        return [self._made(name) for name in fusion_names() if name != genotype.name]

    def encode(self, genotype: NamedFusion) -> Encoded:
        """Return its number."""
        return ((fusion_names().index(genotype.name),),)

    def genotypes(self) -> Iterator[NamedFusion]:
        """Yield all of them."""
        return map(self._made, fusion_names())

    def _made(self, name: str) -> NamedFusion:
        return NamedFusion(name, self.channels, self.length)


def fusion_names(*, of_pairs: bool = False) -> list[str]:
    """Return the names of the hand-made fusions; those for pairs alone where they are wanted."""
    # Their networks need torch, which the plain data do not.
    from bmnas.spaces.fusions.table import FUSIONS, OF_PAIRS

    return [*FUSIONS, *(OF_PAIRS if of_pairs else ())]
