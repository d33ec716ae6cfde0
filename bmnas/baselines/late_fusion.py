"""Late fusion: every modality decides for itself, and the decisions are averaged.

Legend: B batch, L length, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.network import Fusion


class LateFusion(Fusion):
    """The mean of the logits of one linear classifier a modality, each on its last feature.

    ``channels_raw`` maps all features to C_raw, each modality's in their order.
    """

    def __init__(self, channels_raw: Mapping[str, int], *, length: int, classes: int) -> None:
        super().__init__()
        last = {name.partition(".")[0]: name for name in channels_raw}
        self.features = tuple(last.values())
        self.length = length
        self.classifiers = nn.ModuleList(
            nn.Linear(length * channels_raw[name], classes) for name in self.features
        )

    @property
    def classifier(self) -> nn.Module:
        """All there is: the linear layers."""
        return self.classifiers

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        logits = [
            classify(feature.flatten(1))
            for classify, feature in zip(self.classifiers, pooled, strict=True)
        ]
        return torch.stack(logits).mean(0)
