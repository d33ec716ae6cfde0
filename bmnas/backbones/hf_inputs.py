"""What stands before a transformer of transformers: its processor as a part of the graph.

Legend: B batch, T time or tokens, H height, W width, C colours, M mel bands. Constants are made
again from the configuration: no file of weights needs them.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.backbones.base import InputSpec
from bmnas.backbones.conv import Floats
from bmnas.backbones.tap import Reader
from bmnas.machine.errors import UserError, one_line
from bmnas.tasks.pictures import PicturePlan
from bmnas.tasks.task import Array

_FRAME, _HOP, _FFT = 400, 160, 512  # of Kaldi's filter banks at 16 kHz
_PREEMPHASIS = 0.97


def imported(package: str) -> Any:
    """Return a package; raises UserError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(
            f"a backbone hf:<folder> needs the package {package}: pip install 'bmnas[hf]'"
        ) from error


class PlannedPixels(nn.Module):
    """Raw pixels (B, …, H, W) or (B, …, H, W, 3) to (B, …, C, H', W') by a ``plan``.

    uint8 counts from 0 to 255, floats from 0 to 1. A grey picture gets its colours from the
    broadcasting of their means. ``colour`` tells whether the last axis is colour, ``size`` is
    (H, W).
    """

    down: Tensor | None
    across: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(
        self, plan: PicturePlan, size: tuple[int, int], *, colour: bool, dtype: str
    ) -> None:
        super().__init__()
        self.colour = colour
        self.rounds = plan.rounds and dtype == "uint8"
        self.unit = 1.0 if dtype == "uint8" else 255.0
        self.scale = plan.scale
        for name, matrix in zip(("down", "across"), plan.matrices(*size), strict=True):
            constant = None if matrix is None else torch.from_numpy(matrix).float()
            self.register_buffer(name, constant, persistent=False)
        for name, values in (("mean", plan.mean), ("std", plan.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, …, C, H', W')."""
        x = x.to(torch.float32) * self.unit
        x = x.movedim(-1, -3) if self.colour else x.unsqueeze(-3)
        if self.across is not None:
            x = self.whole(x @ self.across.T)
        if self.down is not None:
            x = self.whole(self.down @ x)
        return (x * self.scale - self.mean) / self.std

    def whole(self, x: Tensor) -> Tensor:
        """Return colours ``x`` as whole numbers, if the plan asks for them."""
        return (x + 0.5).floor().clamp(0, 255) if self.rounds else x


def ends(x: Tensor) -> Tensor:
    """Return how long each waveform of ``x`` (B, T) is, (B, 1): zeros at its end do not count."""
    places = torch.arange(1, x.shape[1] + 1, device=x.device)
    return ((x != 0) * places).amax(1, keepdim=True).clamp(min=1)


class StandardWave(nn.Module):
    """Waveforms (B, T) with mean 0 and variance 1 before the zeros at their end, which stay."""

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, T)."""
        length = ends(x)
        content = (torch.arange(x.shape[1], device=x.device) < length).to(x.dtype)
        x = (x - x.sum(1, keepdim=True) / length) * content
        deviation = (x.square().sum(1, keepdim=True) / length + 1e-7).sqrt()
        return x / deviation


class Spectrum(nn.Module):
    """Waveforms (B, T) to powers in mel bands (B, M, frames).

    ``analysis`` (samples of a frame, samples of its transform) is what happens to a frame before
    its discrete Fourier transform, ``filters`` (bins, M) sum powers to bands.
    """

    kernels: Tensor
    filters: Tensor

    def __init__(self, analysis: Array, filters: Array, hop: int) -> None:
        super().__init__()
        self.hop = hop
        size = analysis.shape[1]
        turns = np.outer(np.arange(size // 2 + 1), np.arange(size)) % size
        angles = 2 * np.pi * turns / size
        waves = np.concatenate([np.cos(angles), -np.sin(angles)]) @ analysis.T
        for name, constant in (("kernels", waves[:, None]), ("filters", filters.T)):
            self.register_buffer(name, torch.from_numpy(constant).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the powers (B, M, frames)."""
        real, imaginary = F.conv1d(x.unsqueeze(1), self.kernels, stride=self.hop).chunk(2, dim=1)
        return self.filters @ (real.square() + imaginary.square())


class WhisperMels(nn.Module):
    """Waveforms (B, T) to the log-mel spectrogram of Whisper (B, M, frames)."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        audio = imported("transformers.audio_utils")
        self.samples, size = int(extractor.n_samples), int(extractor.n_fft)
        self.edge = size // 2
        window = np.diag(audio.window_function(size, "hann"))
        self.spectrum = Spectrum(window, np.asarray(extractor.mel_filters), extractor.hop_length)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, M, frames), filled up with silence or cut to the model's length."""
        x = F.pad(x, (0, max(0, self.samples - x.shape[1])))[:, : self.samples]
        x = F.pad(x.unsqueeze(1), (self.edge, self.edge), mode="reflect").squeeze(1)
        x = self.spectrum(x)[:, :, :-1].clamp(min=1e-10).log() / math.log(10)
        x = torch.maximum(x, x.amax((1, 2), keepdim=True) - 8)
        return (x + 4) / 4


class KaldiMels(nn.Module):
    """Waveforms (B, T) to Kaldi's log-mel filter banks (B, frames, M), as AST wants them."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        audio = imported("transformers.audio_utils")
        rate = int(extractor.sampling_rate)
        filters = audio.mel_filter_bank(
            num_frequency_bins=_FFT // 2 + 1,
            num_mel_filters=int(extractor.num_mel_bins),
            min_frequency=20,
            max_frequency=rate // 2,
            sampling_rate=rate,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        # All that is done to a frame is linear: its mean goes, then what the sample before says,
        # then its ends fade.
        step = np.eye(_FRAME) - _PREEMPHASIS * np.eye(_FRAME, k=1)
        step[0, 0] -= _PREEMPHASIS
        centred = np.eye(_FRAME) - 1 / _FRAME
        window = audio.window_function(_FRAME, "hann", periodic=False)
        analysis = np.zeros((_FRAME, _FFT))
        analysis[:, :_FRAME] = centred @ step * window
        self.spectrum = Spectrum(analysis, filters, _HOP)
        self.frames = int(extractor.max_length)
        self.mean, self.scale = 0.0, 1.0
        if extractor.do_normalize:
            self.mean, self.scale = float(extractor.mean), 0.5 / float(extractor.std)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, frames, M), frames of zeros at the end where there are fewer."""
        x = F.pad(x, (0, max(0, _FRAME - x.shape[1])))
        x = self.spectrum(x).clamp(min=1.192092955078125e-07).log().transpose(1, 2)
        x = F.pad(x, (0, 0, 0, max(0, self.frames - x.shape[1])))[:, : self.frames]
        return (x - self.mean) * self.scale


def sound_module(extractor: Mapping[str, Any], dtype: str) -> tuple[nn.Module, int]:
    """Return what makes the input of a model for sounds, and the sample rate that it expects.

    ``extractor`` is the configuration of a feature extractor of transformers. Raises UserError for
    one that is not known.
    """
    transformers = imported("transformers")
    name = str(extractor.get("feature_extractor_type"))
    if name not in _EXTRACTORS:
        raise UserError(
            f"received a feature_extractor_type {name}, expected one of {', '.join(_EXTRACTORS)}"
        )
    made = getattr(transformers, name)(**extractor)
    after: Sequence[nn.Module] = ()
    if name == "WhisperFeatureExtractor":
        after = (WhisperMels(made),)
    elif name == "ASTFeatureExtractor":
        after = (KaldiMels(made),)
    elif made.do_normalize:
        after = (StandardWave(),)
    scale = 1 / 32768 if dtype == "int16" else 1.0
    return nn.Sequential(Floats(scale=scale), *after), int(made.sampling_rate)


_EXTRACTORS = ("Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor", "ASTFeatureExtractor")


class TokenReader(Reader):
    """Texts to token numbers (n, T), int64, filled up with ``fill``, by the model's tokenizer."""

    def __init__(self, config: Mapping[str, Any], fill: int) -> None:
        super().__init__(config)
        self.fill = fill
        tokenizers = imported("tokenizers")
        try:
            self.tokenizer = tokenizers.Tokenizer.from_str(json.dumps(config["tokenizer"]))
        except Exception as error:  # the package raises plain exceptions for malformed content
            raise UserError(f"the tokenizer is malformed: {one_line(error, 200)}") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.shape[0])

    def encode(self, rows: Array) -> Array:
        """Return the token numbers (n, T) of the texts ``rows`` (n,)."""
        encoded = np.full((len(rows), *self.shape), self.fill, dtype=np.int64)
        texts = self.tokenizer.encode_batch([str(text) for text in rows])
        for row, found in zip(encoded, texts, strict=True):
            row[: len(found.ids)] = found.ids
        return encoded

    def longer(self, rows: Array) -> int:
        """Count the texts in ``rows`` (n,) that are cut."""
        texts = self.tokenizer.encode_batch([str(text) for text in rows])
        return sum(bool(found.overflowing) for found in texts)

    def input_spec(self) -> InputSpec:
        """Return what the graph expects: token numbers by the tokenizer."""
        note = {
            "steps": [
                "tokenise by the tokenizer, a tokenizer.json of Hugging Face tokenizers, and cut:"
                " the length holds its special tokens too (enable_truncation)",
                "fill up with pad at the end",
            ],
            # As read: what a file leaves out is filled in.
            "unicode": unicode_rule(json.loads(self.tokenizer.to_str())),
            "length": self.shape[0],
            "pad": self.fill,
            "tokenizer": self.config["tokenizer"],
        }
        meaning = f"one text as {self.shape[0]} token numbers of its tokenizer"
        return InputSpec(self.shape, "int64", meaning, note)


#: What normalizers and pre-tokenizers of Hugging Face tokenizers do, in the terms of Unicode.
_MEANINGS = {
    **{form: f"Unicode {form}" for form in ("NFC", "NFD", "NFKC", "NFKD")},
    "Lowercase": "lower case letter by letter, by the full mapping without final sigma",
    "StripAccents": "marks (M*) are left out",
    "Strip": "blanks at the ends are left out",
    "Prepend": "{prepend!r} in front",
    "Nmt": "controls are left out, blanks and joiners of other kinds become spaces",
    "Precompiled": "characters are replaced by precompiled_charsmap, a table of sentencepiece",
    "Replace": "{pattern} becomes {content!r}",
    "BertPreTokenizer": "cut at blanks (White_Space), each sign (P* and those of ASCII) by itself",
    "ByteLevel": "bytes of UTF-8, one character each",
    "CharDelimiterSplit": "cut at {delimiter!r}",
    "Digits": "numbers (N*) apart from letters",
    "FixedLength": "pieces of {length} characters",
    "Metaspace": "blanks become {replacement!r}",
    "Punctuation": "each sign (P* and those of ASCII) by itself",
    "Split": "cut by {pattern}, {behavior}",
    "UnicodeScripts": "cut where the script changes",
    "Whitespace": "runs of letters, marks, numbers and connectors, and runs of other signs",
    "WhitespaceSplit": "cut at blanks (White_Space)",
}
_GPT2 = "cut by the pattern of GPT-2: runs of letters (L*), of numbers (N*), of other signs"


def unicode_rule(tokenizer: Mapping[str, Any]) -> str:
    """Return what the content of a tokenizer.json does to characters, before its vocabulary."""
    parts = [*_parts(tokenizer.get("normalizer")), *_parts(tokenizer.get("pre_tokenizer"))]
    model = tokenizer.get("model", {}).get("type", "its model")
    return "; ".join([*parts, f"pieces of the vocabulary by {model}"])


def _parts(step: Mapping[str, Any] | None) -> list[str]:
    """Return what a normalizer or pre-tokenizer does, an entry a part."""
    if step is None:
        return []
    kind = step["type"]
    if kind == "Sequence":
        inside = step.get("normalizers") or step.get("pretokenizers") or []
        return [part for one in inside for part in _parts(one)]
    if kind == "BertNormalizer":
        # Left open, accents go with capitals.
        accents = step["lowercase"] if step["strip_accents"] is None else step["strip_accents"]
        does = {
            "controls (Cc, Cf, Co, Cn) are left out, blanks become spaces": step["clean_text"],
            "CJK ideographs stand by themselves": step["handle_chinese_chars"],
            "Unicode NFD without nonspacing marks (Mn)": accents,
            _MEANINGS["Lowercase"]: step["lowercase"],
        }
        return [meaning for meaning, done in does.items() if done]
    values = {**step}
    if isinstance(step.get("pattern"), Mapping):
        ((form, pattern),) = step["pattern"].items()
        values["pattern"] = f"/{pattern}/" if form == "Regex" else repr(pattern)
    meaning = _MEANINGS.get(kind, f"{kind} of Hugging Face tokenizers").format(**values)
    return [_GPT2, meaning] if step.get("use_regex") else [meaning]
