"""What stands between features and logits, as plain data: a genotype, or a fusion by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.found import Found
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions import FUSIONS
from bmnas.spaces.mfas.network import MFASNetwork
from bmnas.spaces.mfas.space import MFASGenotype
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.network import TreeFusion

_LARGEST = 65536  # as in a genotype


@dataclass(frozen=True)
class NamedFusion:
    """A hand-made fusion: its name in ``bmnas.spaces.fusions.FUSIONS``, channels C and length L.

    Raises UserError for a name that there is not and for sizes out of range.
    """

    name: str
    channels: int
    length: int

    def __post_init__(self) -> None:
        known = list(FUSIONS)
        # A list: what a file says may be anything.
        if self.name not in known:
            hint = close(str(self.name), known)
            raise UserError(
                f"received fusion {self.name!r}, expected one of {', '.join(known)}{hint}"
            )
        for key in ("channels", "length"):
            value = getattr(self, key)
            if type(value) is not int or not 1 <= value <= _LARGEST:
                raise UserError(
                    f"fusion {self.name}: {key}: received {value!r}, expected an integer from 1 "
                    f"to {_LARGEST}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> NamedFusion:
        """Build it from plain data; raises UserError on anything but what ``to_dict`` gives."""
        keys = ("name", "channels", "length")
        if not isinstance(data, dict) or data.keys() != set(keys):
            raise UserError(f"fusion: received {str(data)[:80]}, expected {', '.join(keys)}")
        return cls(**data)


Architecture = Found | NamedFusion

#: How to build the network of each kind of genotype: C_raw by feature, classes K, dropout.
_BUILDERS: Mapping[type[Found], Callable[[Any, Mapping[str, int], int, float], Fusion]] = {
    Genotype: lambda found, raw, classes, dropout: FusionNetwork(
        found, raw, classes=classes, dropout=dropout
    ),
    MFASGenotype: lambda found, raw, classes, dropout: MFASNetwork(
        found, raw, classes=classes, dropout=dropout
    ),
    FusionTree: lambda found, raw, classes, dropout: TreeFusion(
        found, raw, classes=classes, dropout=dropout
    ),
}


def takes_unimodal_logits(architecture: Architecture) -> bool:
    """Tell whether the unimodal networks' logits may be added to those of ``architecture``.

    A hand-made fusion stays what it is, and MFAS's networks have heads of the modalities already.
    """
    return isinstance(architecture, Found) and not isinstance(architecture, MFASGenotype)


def build_fusion(
    architecture: Architecture,
    channels_raw: Mapping[str, int],
    *,
    classes: int,
    dropout: float,
) -> Fusion:
    """Return a new network of ``architecture``; ``channels_raw`` maps all features to C_raw.

    Raises UserError where a hand-made fusion cannot have these features.
    """
    if isinstance(architecture, Found):
        return _BUILDERS[type(architecture)](architecture, channels_raw, classes, dropout)
    build, shape = FUSIONS[architecture.name], (architecture.channels, architecture.length)
    try:
        return build(channels_raw, *shape, classes, dropout)
    except UserError as error:
        raise UserError(f"fusion {architecture.name}: {error}") from error
