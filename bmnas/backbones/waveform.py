"""Waveforms: a log-mel spectrogram inside the network, then two-dimensional convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from bmnas.backbones.augmentation import SpectrogramMasking, WaveformAugmentation
from bmnas.backbones.base import InputSpec
from bmnas.backbones.conv import ConvBackbone, Standardise
from bmnas.backbones.logmel import LogMel
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Array, Modality, ModalityType

_WIDTHS = (16, 32, 64, 96)
_LIMITS = (80, 32)  # frames and mel bands that the stages see at most


class Spectrogram(nn.Module):
    """Waveforms (B, T) to log-mel maps (B, 1, frames, M), in training augmented and masked."""

    def __init__(self, samples: int, sample_rate: int) -> None:
        super().__init__()
        self.augmentation = WaveformAugmentation()
        self.log_mel = LogMel(samples, sample_rate)
        self.masking = SpectrogramMasking()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, 1, frames, M)."""
        spectrogram: Tensor = self.masking(self.log_mel(self.augmentation(x)))
        return spectrogram.unsqueeze(1)


class WaveformBackbone(ConvBackbone):
    """A residual network on log-mel spectrograms of waveforms (B, T), int16 or float32.

    ``sample_rate`` is in hertz. Features are three maps (B, C_raw, T', M') with time as their
    first axis, so that a flattened map still runs through time.
    """

    family: ClassVar[str] = "logmel_cnn"
    types: ClassVar[tuple[ModalityType, ...]] = ("waveform",)

    def __init__(
        self,
        *,
        classes: int,
        shape: Sequence[int],
        dtype: str,
        sample_rate: int,
        dropout: float = 0.1,
    ) -> None:
        what = {"shape": list(shape), "dtype": dtype, "sample_rate": sample_rate}
        super().__init__(classes=classes, **what, dropout=dropout)
        self.shape, self.dtype, self.sample_rate = tuple(shape), dtype, sample_rate
        prepare = Spectrogram(self.shape[0], sample_rate)
        frames, mels = prepare.log_mel.frames, prepare.log_mel.mels
        self.build(
            prepare,
            Standardise(mels, 4, axis=3),
            channels=1,
            sizes=(frames, mels),
            limits=_LIMITS,
            widths=_WIDTHS,
        )

    @classmethod
    def facts(cls, modality: Modality, rows: Array, dtype: str) -> dict[str, Any]:
        """Return dtype and sample rate; raises UserError when the modality has no sample rate."""
        if modality.sample_rate is None or modality.sample_rate <= 0:
            raise UserError(
                f"modality {modality.name}: received sample_rate {modality.sample_rate}, expected "
                "the waveform's samples a second: add sample_rate = 16000, or whatever it is"
            )
        return {"dtype": dtype, "sample_rate": int(modality.sample_rate)}

    def fit(self, sample: Array) -> None:
        """Fit loudness, then the standardisation, to encoded train rows."""
        cast(Spectrogram, self.stem.prepare).log_mel.fit(sample)
        super().fit(sample)

    def input_spec(self) -> InputSpec:
        """Return what the network expects: the raw waveform, of fixed length."""
        samples = self.shape[0]
        meaning = f"one channel of sound, {samples / self.sample_rate:.3f} seconds, raw samples"
        note = {
            "sample_rate": self.sample_rate,
            "samples": samples,
            "padding": "zeros at the end of shorter recordings; longer ones are cut at the end",
            "scaling": "none: the network computes a standardised log-mel spectrogram",
        }
        return InputSpec(self.shape, self.dtype, meaning, note)
