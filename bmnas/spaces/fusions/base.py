"""What several hand-made fusions share: a classifier a modality, and features level by level.

Legend: B batch, L length, C channels, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.reshape import Projection
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.features import Sizes, levels


class Deciding(Fusion):
    """Each modality decides by a linear classifier of its own."""

    CLASSIFIER = "classifiers"

    classifiers: nn.ModuleList

    def add_classifiers(self, widths: Iterable[int], classes: int) -> None:
        """Add a classifier for each vector, of so many units."""
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for width in widths)

    def decisions(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return the logits (M, B, K) of M tensors, which are flattened."""
        pairs = zip(self.classifiers, vectors, strict=True)
        return torch.stack([classify(vector.flatten(1)) for classify, vector in pairs])


class LevelFusion(Fusion):
    """The features of all modalities meet at levels, the last ones at the last, see ``levels``.

    Each feature is projected to (B, L, C). A layer a level takes in what the layer before gave, and
    the features of its level. Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(raw, sizes.length)
        self.levels = levels(list(raw))
        self.projections = nn.ModuleList(
            Projection(width, sizes.channels, sizes.dropout) for width in raw.values()
        )

    @property
    def inputs(self) -> list[int]:
        """How many tensors the layer of each level takes in."""
        return [len(names) + (depth > 0) for depth, names in enumerate(self.levels)]

    def hidden(self, pooled: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the projected features (B, L, C) by name, of those pooled (B, L, C_raw)."""
        projected = [p(x) for p, x in zip(self.projections, pooled, strict=True)]
        return dict(zip(self.features, projected, strict=True))

    def fused(self, hidden: Mapping[str, Tensor], layers: nn.ModuleList) -> Tensor:
        """Return what the last of ``layers`` gives, one for each level."""
        below: list[Tensor] = []
        for layer, names in zip(layers, self.levels, strict=True):
            below = [layer([*below, *(hidden[name] for name in names)])]
        return below[0]
