"""Multimodal transfer modules (Joze et al., CVPR 2020, arXiv 1911.08670), the last one.

Legend: B batch, L length, C_raw channels of a raw feature, M modalities, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.spaces.fusions.base import Deciding
from bmnas.spaces.fusions.features import Sizes, last_features

RATIO = 4


class TransferModule(nn.Module):
    """Squeeze and excitation over several modalities (Eq. 1 to 5).

    s = [GAP(x_1); …; GAP(x_M)], e = ReLU(W s + b) of size 2 (C_1 + … + C_M) / 4, and
    x_m' = x_m * 2 sigmoid(W_m e + b_m), channel by channel.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        excited = max(1, 2 * sum(widths) // RATIO)
        self.squeeze = nn.Linear(sum(widths), excited)
        self.excite = nn.ModuleList(nn.Linear(excited, width) for width in widths)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the features with their channels weighed anew, (B, L, C_raw) each as given."""
        squeezed = torch.cat([feature.mean(1) for feature in features], dim=1)
        e = self.squeeze(squeezed).relu()
        return [
            feature * (2 * excite(e).sigmoid()).unsqueeze(1)
            for feature, excite in zip(features, self.excite, strict=True)
        ]


class MMTMFusion(Deciding):
    """MMTM (late): a transfer module between the last features, then the mean of the logits.

    The paper puts a module between the networks after each of several stages, so that later layers
    see weighed features. Later layers of a backbone cannot be computed anew from a cache: this is
    the last module alone. GAP is the mean over the L pooled positions, each the maximum of its
    window. Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(last_features(raw), sizes.length)
        widths = [raw[name] for name in self.features]
        self.transfer = TransferModule(widths)
        self.add_classifiers((sizes.length * width for width in widths), sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        return self.decisions(self.transfer(pooled)).mean(0)
