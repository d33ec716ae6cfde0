"""Late fusion: every modality decides for itself, or a small network on what all of them give.

Legend: B batch, L length, C hidden units, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm
from bmnas.spaces.architecture import by_modality
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.base import Deciding
from bmnas.spaces.fusions.features import Sizes, last_features


class LateFusion(Deciding):
    """The mean of the logits of one linear classifier a modality, each on its last feature.

    The two-stream network of the papers (Simonyan and Zisserman, NeurIPS 2014).
    ``raw`` maps all features to C_raw, each modality's in their order.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        # A single modality may decide alone.
        super().__init__([names[-1] for names in by_modality(list(raw)).values()], sizes.length)
        self.add_classifiers((sizes.length * raw[name] for name in self.features), sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        return self.decisions(pooled).mean(0)


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


class ConcatFusion(Fusion):
    """One hidden layer over the last features of all modalities, flattened and concatenated.

    logits = W2 ReLU(BN(W1 [x_1; …; x_M] + b1)) + b2, dropout before W2; C hidden units. Without
    the hidden layer it would be a sum of linear classifiers, which is late fusion.
    Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(last_features(raw), sizes.length)
        width = sizes.length * sum(raw[name] for name in self.features)
        self.hidden = LinearNorm(width, sizes.channels)
        self.dropout = Dropout(sizes.dropout)
        self.output = nn.Linear(sizes.channels, sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        x = torch.cat([feature.flatten(1) for feature in pooled], dim=1)
        logits: Tensor = self.output(self.dropout(self.hidden(x).relu()))
        return logits


class NoFusion(Fusion):
    """Nothing: the answer is the weighted sum of the unimodal networks' own logits."""

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__((), sizes.length)
        self.output = nn.Identity()
