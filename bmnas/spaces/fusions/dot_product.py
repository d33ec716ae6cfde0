"""The plainest network for what belongs together: two encoders that do not see each other.

Legend: B batch, L length, C channels of what is compared, C_raw channels of a raw feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm
from bmnas.machine.errors import UserError
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.features import Sizes, last_features


class DotProductFusion(Fusion):
    """An encoder for the last feature of each of two modalities, and the cosine of what they give.

    u_m = W2_m ReLU(BN(W1_m x_m + b1_m)) + b2_m of the flattened feature x_m, dropout before W2;
    logit = exp(t) cos(u_1, u_2) + b, with t and b learned, t from log 10 (Zhai et al., ICCV 2023).
    Raises UserError for other than two modalities, and for more outputs than one.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(last_features(raw), sizes.length)
        if len(self.features) != 2 or sizes.classes != 1:
            raise UserError(
                f"received {len(self.features)} modalities and {sizes.classes} outputs, expected "
                "two and one, as of a task of kind matching"
            )
        self.encoders = nn.ModuleList(
            nn.Sequential(
                LinearNorm(sizes.length * raw[name], sizes.channels),
                nn.ReLU(),
                Dropout(sizes.dropout),
                nn.Linear(sizes.channels, sizes.channels),
            )
            for name in self.features
        )
        self.output = Scaled()

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, 1) from the pooled ``features``, (B, L, C_raw) each."""
        one, two = (
            F.normalize(encode(feature.flatten(1)), dim=1)
            for encode, feature in zip(self.encoders, pooled, strict=True)
        )
        logits: Tensor = self.output((one * two).sum(1, keepdim=True))
        return logits


class Scaled(nn.Module):
    """exp(t) x + b, with learned t and b."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([math.log(10.0)]))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return it, (B, 1) as ``x``."""
        return self.scale.exp() * x + self.bias
