from __future__ import annotations

import pytest
import torch

from bmnas.backbones.waveform import augmented


@pytest.fixture
def waveforms() -> torch.Tensor:
    torch.manual_seed(0)
    recordings = torch.randn(200, 1000)
    recordings[:, 600:] = 0  # the filling of short recordings
    return recordings


def test_the_filling_stays_zero_and_moves_by_a_tenth_at_most(waveforms: torch.Tensor) -> None:
    sounds = augmented(waveforms) != 0
    assert torch.equal(sounds.sum(1), torch.full((200,), 600))
    shifts = set()
    for row in sounds:
        found = [s for s in range(-100, 101) if torch.equal(row.roll(-s), waveforms[0] != 0)]
        assert len(found) == 1
        shifts.update(found)
    assert min(shifts) < -80
    assert max(shifts) > 80


def test_the_noise_has_at_most_0_7_of_the_recordings_own_root_mean_square() -> None:
    torch.manual_seed(0)
    loudness = torch.tensor([0.01, 1.0, 300.0]).repeat(100).unsqueeze(1)
    # Constant, so that a shift changes nothing.
    noise = (augmented(loudness.expand(-1, 2000)) - loudness) / loudness
    level = noise.square().mean(1).sqrt()
    assert float(level.max()) < 0.7 * 1.1
    assert float(level.mean()) == pytest.approx(0.35, abs=0.05)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)


def test_integers_and_silence() -> None:
    changed = augmented(torch.full((4, 500), 1000, dtype=torch.int16))
    assert changed.dtype == torch.float32
    assert float(changed.std()) > 0
    assert torch.equal(augmented(torch.zeros(2, 500)), torch.zeros(2, 500))


def test_the_same_seed_gives_the_same(waveforms: torch.Tensor) -> None:
    torch.manual_seed(5)
    first = augmented(waveforms)
    torch.manual_seed(5)
    assert torch.equal(augmented(waveforms), first)
