"""Random shifts and noise in waveforms, against learning recordings by heart.

Legend: B batch, T samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FARTHEST = 0.1  # of T
_LOUDEST = 0.7  # of the recording's own root mean square: a signal-to-noise ratio of 3 dB


class WaveformAugmentation(nn.Module):
    """Shifted, noisier versions of waveforms (B, T), int16 or float; the identity outside training.

    Each recording moves by up to a tenth of T either way, what leaves at one end coming back at
    the other, and gets white noise with a root mean square drawn evenly from 0 to 0.7 of its own
    (a signal-to-noise ratio of 3 dB or more). Samples of exactly zero, the filling of short
    recordings, stay zero and do not count. Draws from the global generator of the tensor's device.
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


def _shift(x: Tensor) -> Tensor:
    """Return every row of ``x`` (B, T) rolled by a number of samples of its own."""
    batch, count = x.shape
    farthest = int(_FARTHEST * count)
    shift = torch.randint(-farthest, farthest + 1, (batch, 1), device=x.device)
    return x.gather(1, (torch.arange(count, device=x.device) - shift) % count)
