"""Log-mel spectrograms from waveforms by fixed convolutions, so that graphs take the waveform.

Legend: B batch, T samples, frames of ``n_fft`` samples every ``hop``, M mel bands. The discrete
Fourier transform is a convolution with cosines and sines: it runs in every runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.tasks.task import Array

_WINDOW = 0.025  # seconds, the usual frame of speech recognition; rounded up to a power of two
_FLOOR = 1e-6  # 60 dB under the mean power of the train rows


@dataclass(frozen=True)
class LogMelSettings:
    """Samples a frame, samples between frames, and number of mel bands."""

    n_fft: int
    hop: int
    mels: int


def log_mel_settings(sample_rate: int) -> LogMelSettings:
    """Choose frames of 25 ms or a little longer, half overlapping, for a rate in hertz."""
    n_fft = max(64, 2 ** math.ceil(math.log2(_WINDOW * sample_rate)))
    mels = 40 if sample_rate < 16000 else 64
    return LogMelSettings(n_fft, n_fft // 2, min(mels, n_fft // 4))


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
    is a periodic Hann window.
    """

    kernels: Tensor
    filters: Tensor
    gain: Tensor

    def __init__(self, samples: int, sample_rate: int, settings: LogMelSettings) -> None:
        super().__init__()
        self.hop = settings.hop
        self.frames = 1 + max(0, -(-(samples - settings.n_fft) // settings.hop))
        self.padding = (self.frames - 1) * settings.hop + settings.n_fft - samples
        time = np.arange(settings.n_fft)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * time / settings.n_fft)
        turns = np.outer(np.arange(settings.n_fft // 2 + 1), time) % settings.n_fft
        angles = 2 * np.pi * turns / settings.n_fft
        waves = np.concatenate([np.cos(angles), -np.sin(angles)]) * window
        kernels = (waves / np.sqrt((window**2).sum()))[:, None]
        filters = mel_filters(sample_rate, settings.n_fft, settings.mels)
        # Fixed by the settings: no file of weights needs them.
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
