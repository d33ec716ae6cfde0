"""Ensembles as a space: an architecture is several of other spaces, on pooled features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, cast

from bmnas.machine.schema import plain
from bmnas.spaces.architecture import Architecture, parsed, wrong
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.description import Description, Node
from bmnas.spaces.space import Encoded, SearchSpace

if TYPE_CHECKING:
    from bmnas.spaces.fusion import Fusion

_MOST = 16  # networks; more are no file of ours


@dataclass(frozen=True)
class Ensemble(Architecture):
    """Two networks or more of any spaces that read pooled features, all of the same length L.

    ``features`` are those of its networks. Raises GenotypeError for networks that cannot be
    averaged.
    """

    FORMAT: ClassVar[str] = "bmnas.ensemble/1"

    networks: tuple[Architecture, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)
    features: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        from bmnas.spaces.registry import space_of

        if not 1 < len(self.networks) <= _MOST:
            raise wrong("networks", len(self.networks), f"2 to {_MOST} of them")
        for place, network in enumerate(self.networks):
            if space_of(network).READS_TOKENS or isinstance(network, Ensemble):
                expected = "a network of one space that reads pooled features"
                raise wrong(f"networks[{place}].format", network.FORMAT, expected)
        lengths = {cast(Any, network).length for network in self.networks}
        if len(lengths) > 1:
            raise wrong("networks", sorted(lengths), "networks of one length")
        names = dict.fromkeys(name for network in self.networks for name in network.features)
        object.__setattr__(self, "features", tuple(names))

    def live_features(self) -> tuple[str, ...]:
        """Return the features that any network reads; a hand-made fusion does not name its own."""
        live = {name for network in self.networks for name in network.live_features()}
        return tuple(name for name in self.features if name in live)

    def summary(self) -> str:
        """Return the number of networks."""
        return f"the mean of {len(self.networks)} networks"

    def to_dict(self) -> dict[str, Any]:
        """Return each network as in its own file, without where it comes from."""
        networks = [network.content() for network in self.networks]
        return {"format": self.FORMAT, "networks": networks, "provenance": plain(self.provenance)}

    @classmethod
    def parse(cls, data: Any) -> Ensemble:
        """Build it from what ``to_dict`` gives; raises GenotypeError that names the place in it."""
        from bmnas.spaces.registry import architecture_from_dict

        found = parsed(_File, data, cls.FORMAT)
        networks = [
            architecture_from_dict(network, f"networks[{place}]")
            for place, network in enumerate(found.networks)
        ]
        return cls(tuple(networks), found.provenance)


@dataclass(frozen=True)
class _File:
    """What the file holds beside its format."""

    networks: tuple[Any, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EnsembleSpace(SearchSpace[Ensemble]):
    """Ensembles of ``networks`` genotypes of Cells; what is built may hold those of any space."""

    NAME: ClassVar[str] = "ensembles"
    GENOTYPE: ClassVar[type[Architecture]] = Ensemble

    features: tuple[str, ...]
    cells: int = 2
    steps: int = 2
    channels: int = 64
    length: int = 8
    networks: int = 3

    @property
    def single(self) -> CellSpace:
        """The space of one of the networks."""
        return CellSpace.of(self.features, dataclasses.asdict(self))

    @classmethod
    def build(
        cls, genotype: Ensemble, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> Fusion:
        """Return the networks, and the mean of what they say."""
        from bmnas.spaces.ensembles.network import EnsembleFusion
        from bmnas.spaces.registry import build_fusion

        sizes: dict[str, Any] = {"classes": classes, "dropout": dropout}
        return EnsembleFusion([build_fusion(g, channels_raw, **sizes) for g in genotype.networks])

    @classmethod
    def describe(cls, genotype: Ensemble) -> Description:
        """Return the nodes of all networks, on the same features, and their mean."""
        from bmnas.spaces.registry import describe

        features: dict[str, Node] = {}
        nodes: list[Node] = []
        for number, network in enumerate(genotype.networks, start=1):
            own = describe(network).nodes
            names = {
                node.name: node.label if node.kind == "feature" else f"{number}/{node.name}"
                for node in own
            }
            names[own[-1].name] = f"network{number}"
            for node in own:
                changed = dataclasses.replace(
                    node, name=names[node.name], reads=tuple(names[name] for name in node.reads)
                )
                if node.kind == "feature":
                    known = features.setdefault(node.label, changed)
                    if node.live and not known.live:
                        features[node.label] = changed
                    continue
                title = f"{number}: {node.group}" if node.group else f"Network {number}"
                kind = "operation" if node.kind == "output" else node.kind
                nodes.append(dataclasses.replace(changed, group=title, kind=kind))
        ends = tuple(f"network{n + 1}" for n in range(len(genotype.networks)))
        mean = Node("mean", "Mean", "of the logits", "output", reads=ends)
        return Description(
            genotype.summary(), genotype.features, (*features.values(), *nodes, mean)
        )

    @classmethod
    def canonical(cls, genotype: Ensemble) -> str:
        """Return the names of the networks, which may stand in any order."""
        from bmnas.spaces.registry import space_of

        return " + ".join(sorted(space_of(g).canonical(g) for g in genotype.networks))

    def sample(self, draw: Random) -> Ensemble:
        """Return an ensemble of networks that are drawn one by one."""
        return Ensemble(tuple(self.single.sample(draw) for _ in range(self.networks)))

    def neighbours(self, genotype: Ensemble) -> list[Ensemble]:
        """Return the ensembles of which one network is a neighbour of its own."""
        single, each = self.single, genotype.networks
        return [
            Ensemble((*each[:place], other, *each[place + 1 :]))
            for place, network in enumerate(each)
            for other in single.neighbours(cast(Any, network))
        ]

    def encode(self, genotype: Ensemble) -> Encoded:
        """Return the rows of all networks, one after the other."""
        single = self.single
        return tuple(row for g in genotype.networks for row in single.encode(cast(Any, g)))
