"""Random changes of recordings in training, against learning them by heart.

Legend: B batch, T samples, M mel bands. All draws come from the global generator of the tensor's
device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FARTHEST = 0.1  # of T
_LOUDEST = 0.7  # of the recording's own root mean square: a signal-to-noise ratio of 3 dB
_WIDEST = 0.15  # of an axis


class WaveformAugmentation(nn.Module):
    """Shifted, noisier versions of waveforms (B, T), int16 or float; the identity outside training.

    Each recording moves by up to a tenth of T either way, what leaves at one end coming back at
    the other, and gets white noise with a root mean square drawn evenly from 0 to 0.7 of its own
    (a signal-to-noise ratio of 3 dB or more). Samples of exactly zero, the filling of short
    recordings, stay zero and do not count.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the waveforms, in training changed and in floating point."""
        if not self.training:
            return x
        x = _shift(x if x.is_floating_point() else x.float())
        sounds = x != 0
        power = x.square().sum(1, keepdim=True) / sounds.sum(1, keepdim=True).clamp(min=1)
        level = _LOUDEST * torch.rand(len(x), 1, device=x.device) * power.sqrt()
        noise = torch.randn_like(x)
        return torch.where(sounds, x + level * noise, x)


class SpectrogramMasking(nn.Module):
    """SpecAugment's masks over spectrograms (B, frames, M); the identity outside training.

    Each sample loses one stretch of frames and one of bands, each at most 15 % of its axis
    (Park et al., 2019, section 2, without the warping of time). What is lost becomes the sample's
    mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectrograms, in training with masks."""
        if not self.training:
            return x
        mean = x.mean((1, 2), keepdim=True)
        lost = _stretch(x, 1).unsqueeze(2) | _stretch(x, 2).unsqueeze(1)
        return torch.where(lost, mean, x)


def _shift(x: Tensor) -> Tensor:
    """Return every row of ``x`` (B, T) rolled by a number of samples of its own."""
    batch, count = x.shape
    farthest = int(_FARTHEST * count)
    shift = torch.randint(-farthest, farthest + 1, (batch, 1), device=x.device)
    return x.gather(1, (torch.arange(count, device=x.device) - shift) % count)


def _stretch(x: Tensor, axis: int) -> Tensor:
    """Return booleans (B, n) over the n positions of an axis, true in the masked stretch."""
    batch, count = x.shape[0], x.shape[axis]
    width = _WIDEST * count * torch.rand(batch, 1, device=x.device)
    start = (count - width) * torch.rand(batch, 1, device=x.device)
    position = torch.arange(count, device=x.device) + 0.5
    return (position >= start) & (position < start + width)
