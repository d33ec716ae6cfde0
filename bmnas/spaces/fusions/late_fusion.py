"""Late fusion: every modality decides for itself, and the decisions are averaged.

Legend: B batch, L length, C_raw channels of a raw feature, M modalities, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.features import Sizes


class LateFusion(Fusion):
    """The mean of the logits of one linear classifier a modality, each on its last feature.

    The two-stream network of the papers (Simonyan and Zisserman, NeurIPS 2014).
    ``raw`` maps all features to C_raw, each modality's in their order.
    """

    CLASSIFIER = "classifiers"

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__()
        last = {name.partition(".")[0]: name for name in raw}
        self.features = tuple(last.values())
        self.length = sizes.length
        self.classifiers = nn.ModuleList(
            nn.Linear(sizes.length * raw[name], sizes.classes) for name in self.features
        )

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        return self.decisions(pooled).mean(0)

    def decisions(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return the logits of each modality, (M, B, K)."""
        logits = [
            classify(feature.flatten(1))
            for classify, feature in zip(self.classifiers, pooled, strict=True)
        ]
        return torch.stack(logits)


class WeightedLateFusion(LateFusion):
    """Late fusion with one learned weight a modality: sum over m of softmax(a)_m logits_m.

    The weights start equal, as in the mean.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(raw, sizes)
        self.weights = nn.Parameter(torch.zeros(len(self.features)))

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        return torch.einsum("m,mbk->bk", self.weights.softmax(0), self.decisions(pooled))
