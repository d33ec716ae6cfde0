"""Log-mel spectrograms from waveforms by fixed convolutions, so that graphs take the waveform.

Legend: B batch, T samples, frames of ``n_fft`` samples every ``hop``, M mel bands. The discrete
Fourier transform is a convolution with cosines and sines: it runs in every runtime.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.tasks.task import Array

_WINDOW = 0.025  # seconds, the usual frame of speech recognition; rounded up to a power of two
_FLOOR = 1e-6  # 60 dB under the mean power of the train rows


def mel_filters(sample_rate: int, n_fft: int, mels: int) -> Array:
    """Return triangular filters (n_fft/2 + 1, M), float64, each summing to one.

    Equally spaced on the mel scale, 2595 log10(1 + f / 700), from 0 to half the sample rate.
    A triangle narrower than the distance of two bins takes the bin next to its peak.
    """
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    low, peak, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - low) / (peak - low)
    falling = (high - bins[:, None]) / (high - peak)
    filters = np.maximum(0, np.minimum(rising, falling))
    for band in np.flatnonzero(filters.sum(0) == 0):
        filters[np.abs(bins - peak[band]).argmin(), band] = 1
    normalised: Array = filters / filters.sum(0)
    return normalised


class LogMel(nn.Module):
    """Waveforms (B, T), int16 or float, to log-mel spectrograms (B, frames, M), float32.

    log(power + 1e-6), where white noise with the mean power of the train rows has power 1 in
    every band: ``fit`` measures that power, so that the loudness of the recordings does not
    matter. Frames start at 0, hop, 2 hop, …; the last one is filled up with zeros. The window
    is a periodic Hann window. A frame has ``n_fft`` samples, 25 ms or a little longer, and half of
    it overlaps with the next one, ``hop`` samples later; M is ``mels``.
    """

    kernels: Tensor
    filters: Tensor
    gain: Tensor

    def __init__(self, samples: int, sample_rate: int) -> None:
        super().__init__()
        self.n_fft = max(64, 2 ** math.ceil(math.log2(_WINDOW * sample_rate)))
        self.hop = self.n_fft // 2
        self.mels = min(40 if sample_rate < 16000 else 64, self.n_fft // 4)
        self.frames = 1 + max(0, -(-(samples - self.n_fft) // self.hop))
        self.padding = (self.frames - 1) * self.hop + self.n_fft - samples
        time = np.arange(self.n_fft)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * time / self.n_fft)
        turns = np.outer(np.arange(self.n_fft // 2 + 1), time) % self.n_fft
        angles = 2 * np.pi * turns / self.n_fft
        waves = np.concatenate([np.cos(angles), -np.sin(angles)]) * window
        kernels = (waves / np.sqrt((window**2).sum()))[:, None]
        filters = mel_filters(sample_rate, self.n_fft, self.mels)
        # Fixed by the sample rate: no file of weights needs them.
        self.register_buffer("kernels", torch.from_numpy(kernels).float(), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("gain", torch.ones(()))

    def fit(self, rows: Array) -> None:
        """Set the gain from the mean power of train ``rows`` (n, T); silence leaves it at 1."""
        power = float(np.mean(np.square(rows, dtype=np.float64)))
        if power > 0:
            self.gain.fill_(power**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-mel spectrogram (B, frames, M)."""
        x = F.pad(x.to(self.kernels.dtype) * self.gain, (0, self.padding))
        spectrum = F.conv1d(x.unsqueeze(1), self.kernels, stride=self.hop)
        real, imaginary = spectrum.chunk(2, dim=1)
        power = (real.square() + imaginary.square()).transpose(1, 2) @ self.filters
        return (power + _FLOOR).log()
