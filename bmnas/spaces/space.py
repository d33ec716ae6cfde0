"""What a search looks in: which architectures there are, and the network of each.

A space knows nothing of who searches it. To add one is to write a genotype (``Architecture``) and
a subclass of ``SearchSpace``, and to call ``bmnas.spaces.registry.register_space``. Nothing heavy
is imported before a network is built.

Legend: C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.description import Description

if TYPE_CHECKING:
    from bmnas.spaces.fusion import Fusion

A = TypeVar("A", bound=Architecture)

#: An architecture as numbers, a row a level, for a surrogate.
Encoded = tuple[tuple[int, ...], ...]


class SearchSpace(ABC, Generic[A]):
    """The architectures over ``features`` of some sizes; all chances come from the ``draw`` given.

    A subclass is a frozen dataclass: its fields are ``features`` and then its sizes, which have
    the names of settings of the search.
    """

    NAME: ClassVar[str]
    GENOTYPE: ClassVar[type[Architecture]]

    #: Whether the unimodal networks' logits may be added to those of its networks.
    TAKES_UNIMODAL_LOGITS: ClassVar[bool] = True

    #: Whether its networks read features as tokens, with masks, and not pooled.
    READS_TOKENS: ClassVar[bool] = False

    #: Whether its networks can give numbers for each region of a feature with boxes.
    FINDS_REGIONS: ClassVar[bool] = False

    #: Whether its networks read features through their mean over positions alone.
    READS_MEANS: ClassVar[bool] = False

    #: Whether there is a relaxed network of all of it, which strategy ``bmnas`` trains.
    HAS_SUPERNET: ClassVar[bool] = False

    features: tuple[str, ...]

    @classmethod
    def of(cls, features: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """Return the space over ``features`` whose sizes are those of ``settings`` by their names.

        A size that ``settings`` do not name keeps its default.
        """
        given = {name: settings[name] for name in cls.sizes() if name in settings}
        return cls(tuple(features), **given)  # type: ignore[call-arg]

    @classmethod
    def sizes(cls) -> list[str]:
        """Return the names of its sizes."""
        fields = dataclasses.fields(cast(Any, cls))
        return [field.name for field in fields if field.name != "features"]

    @classmethod
    @abstractmethod
    def build(
        cls, genotype: A, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> Fusion:
        """Return a new network; ``channels_raw`` maps all features to C_raw.

        Raises UserError where it cannot have these features.
        """

    @classmethod
    def build_candidate(
        cls, genotype: A, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> Fusion:
        """Return the network that stands for ``genotype`` while a search compares candidates."""
        return cls.build(genotype, channels_raw, classes=classes, dropout=dropout)

    @classmethod
    @abstractmethod
    def describe(cls, genotype: A) -> Description:
        """Return what a drawing of ``genotype`` shows."""

    @classmethod
    def canonical(cls, genotype: A) -> str:
        """Return the name of the network, one for all genotypes that are isomorphic."""
        return json.dumps(genotype.content(), sort_keys=True)

    @abstractmethod
    def sample(self, draw: Random) -> A:
        """Return an architecture that is drawn evenly, choice by choice."""

    @abstractmethod
    def neighbours(self, genotype: A) -> list[A]:
        """Return the architectures that differ from ``genotype`` in one choice."""

    @abstractmethod
    def encode(self, genotype: A) -> Encoded:
        """Return rows of numbers, all of one length, that tell architectures apart."""

    def mutated(self, genotype: A, draw: Random) -> A:
        """Return a neighbour of ``genotype``, or itself where it has none."""
        found = self.neighbours(genotype)
        return draw.choice(found) if found else genotype

    def crossed(self, first: A, second: A, draw: Random) -> tuple[A, A]:
        """Return two children of two parents: the parents themselves where nothing is exchanged."""
        return first, second

    def final(self, genotype: A) -> A:
        """Return what is trained in the end where a candidate is ``genotype``: it may be wider."""
        return genotype

    @property
    def levels(self) -> int:
        """The choices that a sequential search makes one after the other; 0: none."""
        return 0

    def unfold(self, kept: Sequence[A], level: int) -> list[A]:
        """Return every choice for ``level`` (from 0) on each of ``kept``, each network once.

        With nothing ``kept`` these are the first candidates of all.
        """
        raise UserError(
            f"space {self.NAME}: has no levels, which a sequential search goes through; expected "
            "another strategy than mfas"
        )

    def genotypes(self) -> Iterator[A]:
        """Yield every architecture once, in a fixed order."""
        raise UserError(f"space {self.NAME}: cannot be listed, expected a small finite space")
