"""Random masks over time and frequency, against learning recordings by heart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MASKS = 1
_WIDEST = 0.15  # of an axis


class SpectrogramMasking(nn.Module):
    """SpecAugment's masks over spectrograms (B, frames, M); the identity outside training.

    Each sample loses one stretch of frames and one of bands, each at most 15 % of its axis
    (Park et al., 2019, section 2, without the warping of time). What is lost becomes the sample's
    mean. Draws from the global generator of the tensor's device.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectrograms, in training with masks."""
        if not self.training:
            return x
        mean = x.mean((1, 2), keepdim=True)
        lost = _stretches(x, 1).unsqueeze(2) | _stretches(x, 2).unsqueeze(1)
        return torch.where(lost, mean, x)


def _stretches(x: Tensor, axis: int) -> Tensor:
    """Return booleans (B, n) over the n positions of an axis, true in the masked stretches."""
    batch, count = x.shape[0], x.shape[axis]
    width = _WIDEST * count * torch.rand(batch, _MASKS, 1, device=x.device)
    start = (count - width) * torch.rand(batch, _MASKS, 1, device=x.device)
    position = torch.arange(count, device=x.device) + 0.5
    return ((position >= start) & (position < start + width)).any(1)
