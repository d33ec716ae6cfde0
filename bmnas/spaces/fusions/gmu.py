"""Gated multimodal units (Arevalo et al., ICLR 2017 workshop, arXiv 1702.01992).

Legend: B batch, L length, C hidden units, C_raw channels of a raw feature, M modalities,
K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.features import Sizes, last_features


class GatedUnit(nn.Module):
    """The unit itself: what each modality contributes is decided by gates that see all of them.

    With v_m the values of modality m: h_m = tanh(v_m). Two modalities share one gate,
    z = sigmoid(W_z [v_1; v_2]), h = z h_1 + (1 - z) h_2 (section 3.1, bimodal). More have one gate
    each, z_m = sigmoid(W_m [v_1; …; v_M]), h = sum over m of z_m h_m (Figure 2a).
    As in the authors' program the gates read the values before tanh.
    """

    def __init__(self, modalities: int, channels: int) -> None:
        super().__init__()
        gates = 1 if modalities == 2 else modalities
        self.gate = nn.Linear(modalities * channels, gates * channels, bias=False)

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """Return h (B, C) from the values of the M modalities, (B, C) each."""
        z: Tensor = self.gate(torch.cat(tuple(values), dim=1)).sigmoid()
        hidden = [value.tanh() for value in values]
        if len(hidden) == 2:
            return z * hidden[0] + (1 - z) * hidden[1]
        gates = z.chunk(len(hidden), dim=1)
        return torch.stack([a * h for a, h in zip(gates, hidden, strict=True)]).sum(0)


class Maxout(nn.Module):
    """The larger of two linear layers, element by element: (B, C) to (B, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pieces = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return max(W1 x + b1, W2 x + b2), (B, C)."""
        first, second = self.pieces(x).chunk(2, dim=1)
        return torch.maximum(first, second)


class GMUFusion(Fusion):
    """A gated unit over the last features, then two maxout layers and a linear one.

    v_m = W_m BN(x_m) of the flattened feature x_m; h as ``GatedUnit`` says; logits = W BN(maxout(
    BN(maxout(BN(h))))) + b, dropout before W. The paper takes C = 512 and vectors of pretrained
    networks. Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(last_features(raw), sizes.length)
        widths = [sizes.length * raw[name] for name in self.features]
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)
        self.values = nn.ModuleList(
            nn.Linear(width, sizes.channels, bias=False) for width in widths
        )
        self.unit = GatedUnit(len(widths), sizes.channels)
        self.decide = nn.Sequential(
            nn.BatchNorm1d(sizes.channels),
            Maxout(sizes.channels),
            nn.BatchNorm1d(sizes.channels),
            Maxout(sizes.channels),
            nn.BatchNorm1d(sizes.channels),
            Dropout(sizes.dropout),
        )
        self.output = nn.Linear(sizes.channels, sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        values = [
            weigh(norm(feature.flatten(1)))
            for weigh, norm, feature in zip(self.values, self.norms, pooled, strict=True)
        ]
        logits: Tensor = self.output(self.decide(self.unit(values)))
        return logits
