from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from backbone_cases import modality

from bmnas.backbones import build_backbone
from bmnas.backbones.waveform import LogMel, mel_filters


def literal_log_mel(
    wave: npt.NDArray[np.float64], rate: int, settings: LogMel
) -> npt.NDArray[np.float64]:
    n_fft, hop, mels = settings.n_fft, settings.hop, settings.mels
    frames = []
    start = 0
    while start == 0 or start + n_fft - hop < len(wave):
        frame = np.zeros(n_fft)
        piece = wave[start : start + n_fft]
        frame[: len(piece)] = piece
        frames.append(frame)
        start += hop
    window = np.hanning(n_fft + 1)[:-1]
    spectrum = np.fft.rfft(np.stack(frames) * window)
    power = np.abs(spectrum) ** 2 / (window**2).sum()
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.arange(mels + 2) * top / (mels + 1) / 2595) - 1)
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    bands = np.zeros((len(frames), mels))
    for band in range(mels):
        weights = np.interp(bins, edges[band : band + 3], [0, 1, 0])
        bands[:, band] = power @ weights / weights.sum()
    return np.log(bands + 1e-6)


@pytest.mark.parametrize(("rate", "samples"), [(8000, 3000), (16000, 5121), (8000, 100)])
def test_log_mel_equals_the_literal_fourier_transform(rate: int, samples: int) -> None:
    waves = np.random.default_rng(0).normal(size=(3, samples))
    log_mel = LogMel(samples, rate)
    received = log_mel(torch.from_numpy(waves)).numpy()
    expected = np.stack([literal_log_mel(wave, rate, log_mel) for wave in waves])
    assert received.shape == expected.shape == (3, log_mel.frames, log_mel.mels)
    np.testing.assert_allclose(received, expected, atol=1e-3)


def test_a_tone_is_loudest_in_the_band_of_its_frequency() -> None:
    settings = LogMel(16000, 16000)
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    found = settings(torch.from_numpy(tone)[None])[0].mean(0).argmax()
    step = 2595 * np.log10(1 + 8000 / 700) / (settings.mels + 1)
    assert abs(int(found) + 1 - 2595 * np.log10(1 + 1000 / 700) / step) < 1


@pytest.mark.parametrize("rate", [100, 4000, 8000, 16000, 22050, 44100, 48000])
def test_every_band_hears_something_at_every_rate(rate: int) -> None:
    settings = LogMel(rate, rate)
    filters = mel_filters(rate, settings.n_fft, settings.mels)
    assert settings.n_fft >= 0.025 * rate
    assert settings.hop * 2 == settings.n_fft
    np.testing.assert_allclose(filters.sum(0), 1)
    assert (filters >= 0).all()


def test_white_noise_of_the_train_rows_has_power_one() -> None:
    noise = np.random.default_rng(0).normal(scale=1234.5, size=(20, 8000))
    log_mel = LogMel(8000, 8000)
    log_mel.fit(noise)
    power = log_mel(torch.from_numpy(noise)).exp().mean((0, 1))
    assert ((power > 0.8) & (power < 1.2)).all()


def test_loudness_and_number_type_of_the_recordings_do_not_matter() -> None:
    part = modality("waveform")
    outputs = []
    for rows in (part.data, part.data / 32768, part.data.astype(np.float64) * 1000):
        torch.manual_seed(0)
        backbone = build_backbone(part, classes=2, rows=rows).eval()
        outputs.append(backbone(torch.from_numpy(backbone.encode(rows))))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert torch.allclose(outputs[0], outputs[2], atol=1e-4)


def test_silence_is_finite() -> None:
    part = modality("waveform")
    rows = np.zeros((4, 4000), dtype=np.int16)
    backbone = build_backbone(part, classes=2, rows=rows).eval()
    assert backbone(torch.from_numpy(rows)).isfinite().all()


def test_an_event_moves_along_the_first_axis_of_a_feature() -> None:
    part = modality("waveform")
    backbone = build_backbone(part, classes=2, rows=part.data).eval()
    places = []
    for start in (300, 3000):
        rows = np.zeros((1, 4000), dtype=np.int16)
        rows[0, start : start + 400] = part.data[0, :400]
        silence = backbone.features(torch.zeros(1, 4000, dtype=torch.int16))[0]
        change = (backbone.features(torch.from_numpy(rows))[0] - silence).abs().sum((0, 1, 3))
        places.append(int(change.argmax()) / len(change))
    assert places[0] < 0.4 < 0.6 < places[1]
