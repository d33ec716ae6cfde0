"""Waveforms: a log-mel spectrogram inside the network, then two-dimensional convolutions.

Legend: B batch, T samples, frames of ``n_fft`` samples every ``hop``, M mel bands. The discrete
Fourier transform is a convolution with cosines and sines: it runs in every runtime. In training,
random changes keep the network from learning recordings by heart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.backbones.base import InputSpec, row_dtype
from bmnas.backbones.conv import ConvBackbone
from bmnas.machine.runtime import in_full_precision
from bmnas.tasks.task import Array, Modality, ModalityType

_WINDOW = 0.025  # seconds, the usual frame of speech recognition; rounded up to a power of two
#: Is added to the power of each band.
FLOOR = 1e-6  # 60 dB under the mean power of the train rows
_FARTHEST = 0.1  # of T
_LOUDEST = 0.7  # of the recording's own root mean square: a signal-to-noise ratio of 3 dB
_WIDEST = 0.15  # of an axis


class WaveformBackbone(ConvBackbone):
    """A residual network on log-mel spectrograms of waveforms (B, T), int16 or float32.

    ``sample_rate`` is in hertz. Features are three maps (B, C_raw, T', M') with time as their
    first axis, so that a flattened map still runs through time.
    """

    family: ClassVar[str] = "logmel_cnn"
    types: ClassVar[tuple[ModalityType, ...]] = ("waveform",)
    limits = (80, 32)  # frames and mel bands

    def __init__(
        self,
        *,
        classes: int,
        shape: Sequence[int],
        dtype: str,
        sample_rate: int,
        dropout: float = 0.1,
    ) -> None:
        (samples,) = shape
        meaning = f"one channel of sound, {samples / sample_rate:.3f} seconds, raw samples"
        note = {
            "sample_rate": sample_rate,
            "samples": samples,
            "padding": "zeros at the end of shorter recordings; longer ones are cut at the end",
            "scaling": "none: the network computes a standardised log-mel spectrogram",
        }
        super().__init__(
            InputSpec((samples,), dtype, meaning, note),
            classes=classes,
            shape=list(shape),
            dtype=dtype,
            sample_rate=sample_rate,
            dropout=dropout,
        )
        prepare = Spectrogram(samples, sample_rate)
        self.build(prepare, (1, prepare.log_mel.frames, prepare.log_mel.mels), axis=3)

    @classmethod
    def facts(cls, modality: Modality, rows: Array) -> dict[str, Any]:
        """Return dtype and sample rate."""
        assert modality.sample_rate is not None
        dtype = row_dtype(modality.type, rows)
        return {"dtype": dtype, "sample_rate": int(modality.sample_rate)}

    def fit(self, sample: Array) -> None:
        """Fit loudness, then the standardisation, to encoded train rows."""
        cast(Spectrogram, self.stem.prepare).log_mel.fit(sample)
        super().fit(sample)


class Spectrogram(nn.Module):
    """Waveforms (B, T) to log-mel maps (B, 1, frames, M), in training augmented and masked."""

    def __init__(self, samples: int, sample_rate: int) -> None:
        super().__init__()
        self.log_mel = LogMel(samples, sample_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, 1, frames, M)."""
        if not self.training:
            return cast(Tensor, self.log_mel(x)).unsqueeze(1)
        return masked(self.log_mel(augmented(x))).unsqueeze(1)


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
        return in_full_precision(self._spectrogram, x)

    def _spectrogram(self, x: Tensor) -> Tensor:
        x = F.pad(x.to(self.kernels.dtype) * self.gain, (0, self.padding))
        spectrum = F.conv1d(x.unsqueeze(1), self.kernels, stride=self.hop)
        real, imaginary = spectrum.chunk(2, dim=1)
        power = (real.square() + imaginary.square()).transpose(1, 2) @ self.filters
        return (power + FLOOR).log()


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


def augmented(x: Tensor) -> Tensor:
    """Return shifted, noisier versions of waveforms (B, T), in floating point.

    Each recording moves by up to a tenth of T either way, what leaves at one end coming back at
    the other, and gets white noise with a root mean square drawn evenly from 0 to 0.7 of its own
    (a signal-to-noise ratio of 3 dB or more). Samples of exactly zero, the filling of short
    recordings, stay zero and do not count.
    """
    batch, count = x.shape
    x = x if x.is_floating_point() else x.float()
    farthest = int(_FARTHEST * count)
    shift = torch.randint(-farthest, farthest + 1, (batch, 1), device=x.device)
    x = x.gather(1, (torch.arange(count, device=x.device) - shift) % count)
    sounds = x != 0
    power = x.square().sum(1, keepdim=True) / sounds.sum(1, keepdim=True).clamp(min=1)
    level = _LOUDEST * torch.rand(batch, 1, device=x.device) * power.sqrt()
    noise = torch.randn_like(x)
    return torch.where(sounds, x + level * noise, x)


def masked(x: Tensor) -> Tensor:
    """Return spectrograms (B, frames, M) with SpecAugment's masks.

    Each sample loses one stretch of frames and one of bands, each at most 15 % of its axis
    (Park et al., 2019, section 2, without the warping of time). What is lost becomes the sample's
    mean.
    """
    lost = _stretch(x, 1).unsqueeze(2) | _stretch(x, 2).unsqueeze(1)
    return torch.where(lost, x.mean((1, 2), keepdim=True), x)


def _stretch(x: Tensor, axis: int) -> Tensor:
    """Return booleans (B, n) over the n positions of an axis, true in the masked stretch."""
    batch, count = x.shape[0], x.shape[axis]
    width = _WIDEST * count * torch.rand(batch, 1, device=x.device)
    start = (count - width) * torch.rand(batch, 1, device=x.device)
    position = torch.arange(count, device=x.device) + 0.5
    return (position >= start) & (position < start + width)
