"""Late fusion by concatenation.

Legend: B batch, L length, C hidden units, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.features import Sizes, last_features


class ConcatFusion(Fusion):
    """One hidden layer over the last features of all modalities, flattened and concatenated.

    logits = W2 ReLU(BN(W1 [x_1; …; x_M] + b1)) + b2, dropout before W2; C hidden units. Without
    the hidden layer it would be a sum of linear classifiers, which is late fusion.
    Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__()
        self.features = last_features(raw)
        self.length = sizes.length
        width = sizes.length * sum(raw[name] for name in self.features)
        self.hidden = LinearNorm(width, sizes.channels)
        self.dropout = Dropout(sizes.dropout)
        self.output = nn.Linear(sizes.channels, sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        x = torch.cat([feature.flatten(1) for feature in pooled], dim=1)
        logits: Tensor = self.output(self.dropout(self.hidden(x).relu()))
        return logits
