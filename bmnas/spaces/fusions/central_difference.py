"""Temporal central-difference convolution (3D-CDC-T: Yu et al., TIP 2021, arXiv 2008.09412).

Legend: B batch, L length, C channels, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.layers import Dropout, batch_norm
from bmnas.spaces.fusions.base import LevelFusion
from bmnas.spaces.fusions.features import Sizes

THETA = 0.6
_KERNEL = 3


class TemporalDifference(nn.Module):
    """The temporal form in one dimension: what changes between positions beside what is there.

    y_t = w_-1 x_(t-1) + w_0 x_t + w_1 x_(t+1) - theta (w_-1 + w_1) x_t, zeros beyond the ends, no
    bias. Only the weights of the neighbours in time enter the difference, as in 3D-CDC-T;
    theta = 0 is a convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, theta: float = THETA) -> None:
        super().__init__()
        self.theta = theta
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, _KERNEL))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, C_out) from ``x`` (B, L, C_in)."""
        before, here, after = self.weight.unbind(-1)
        # The difference is linear in x_t, so it is part of the middle weight.
        kernel = torch.stack((before, here - self.theta * (before + after), after), dim=-1)
        return F.conv1d(x.transpose(1, 2), kernel, padding=_KERNEL // 2).transpose(1, 2)


class LateralConnection(nn.Module):
    """ReLU(BN(CDC([h_1; …]))) of features side by side, dropout: (B, L, n C) to (B, L, C)."""

    def __init__(self, inputs: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.difference = TemporalDifference(inputs * channels, channels)
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return (B, L, C) from tensors (B, L, C)."""
        h = batch_norm(self.difference(torch.cat(tuple(hidden), dim=-1)), self.norm)
        z: Tensor = self.dropout(h.relu())
        return z


class CentralDifferenceFusion(LevelFusion):
    """A fused branch with a temporal lateral connection from every modality at every level.

    h^(l+1) = ReLU(BN(CDC([h^l; x_1^l; …; x_M^l]))), x_m^l being feature l of modality m, pooled and
    projected to (B, L, C); a linear layer on the last h, flattened. theta is 0.6.

    The paper searches cells and lateral connections of 3D networks, between the branches; they
    feed back into the branches, which cached features do not allow. Space is pooled away here: the
    convolution runs along the L positions. These are times for a sequence and a clip; for an image
    and a spectrogram they are cells of a grid, row by row, and for a vector L times the same.
    Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(raw, sizes)
        self.connections = nn.ModuleList(
            LateralConnection(inputs, sizes.channels, sizes.dropout) for inputs in self.inputs
        )
        self.output = nn.Linear(sizes.length * sizes.channels, sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        fused = self.fused(self.hidden(pooled), self.connections)
        logits: Tensor = self.output(fused.flatten(1))
        return logits
