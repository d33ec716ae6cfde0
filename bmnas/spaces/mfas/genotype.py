"""What MFAS finds: a chain of fusion layers, each over one feature of every modality.

h_l = act(W_l [x_i; y_j; h_(l-1)]). Standard library only; the file is JSON, see ``MFASGenotype``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar, Literal

from bmnas.spaces.architecture import Architecture, by_modality, check_features, wrong
from bmnas.training.settings import Size

#: In the order of their numbers in the authors' program, which the surrogate reads.
ACTIVATIONS: tuple[Literal["relu", "sigmoid"], ...] = ("relu", "sigmoid")

#: Layers of an architecture at most: more would be a file made to overflow something.
DEEPEST = 200


@dataclass(frozen=True)
class Layer:
    """A fusion layer: one feature of each modality, in their order, and the activation."""

    inputs: tuple[str, ...]
    activation: Literal["relu", "sigmoid"]


Layers = tuple[Layer, ...]


@dataclass(frozen=True)
class MFASGenotype(Architecture):
    """Fusion layers over ``features``, the first one first, each of ``inner_size`` units.

    ``length`` is that of the pooled features (L). With ``scalars`` the modalities of a layer are
    weighed by learned scalars. Raises GenotypeError when it breaks a rule: fewer than two
    modalities, no layer or more than ``DEEPEST``, inputs that are not one feature of each
    modality in their order.
    """

    FORMAT: ClassVar[str] = "bmnas.mfas/1"

    features: tuple[str, ...]
    length: Size
    inner_size: Size
    layers: Layers
    scalars: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        _check(self)

    def last_features(self) -> tuple[str, ...]:
        """Return the last feature of each modality, those that its own head reads."""
        return tuple(names[-1] for names in by_modality(self.features).values())

    def live_features(self) -> tuple[str, ...]:
        """Return the features that a layer or a head reads, in the order of ``features``."""
        read = {name for layer in self.layers for name in layer.inputs}
        read.update(self.last_features())
        return tuple(name for name in self.features if name in read)

    def summary(self) -> str:
        """Return its size in a line of text."""
        count = len(self.layers)
        layers = f"{count} fusion layer{'s' if count > 1 else ''} of {self.inner_size} units"
        return f"MFAS: {layers}, and a linear head on the last feature of each modality"


def layer_choices(features: Sequence[str]) -> list[Layer]:
    """Return every possible layer: the activation changes fastest, the first modality slowest.

    Of two modalities with four features each there are 4 x 4 x 2 = 32.
    """
    pairs = product(product(*by_modality(features).values()), ACTIVATIONS)
    return [Layer(inputs, activation) for inputs, activation in pairs]


def _check(genotype: MFASGenotype) -> None:
    check_features(genotype.features)
    groups = by_modality(genotype.features)
    if len(groups) < 2:
        raise wrong("features", list(genotype.features), "features of two or more modalities")
    if not genotype.layers:
        raise wrong("layers", [], "at least one layer")
    if len(genotype.layers) > DEEPEST:
        raise wrong("layers", f"{len(genotype.layers)} layers", f"at most {DEEPEST}")
    for n, layer in enumerate(genotype.layers):
        place = f"layers[{n}].inputs"
        if len(layer.inputs) != len(groups):
            raise wrong(place, list(layer.inputs), f"one feature of each of {', '.join(groups)}")
        for m, (name, group) in enumerate(zip(layer.inputs, groups.values(), strict=True)):
            if name not in group:
                raise wrong(f"{place}[{m}]", name, f"one of {', '.join(group)}")
