from __future__ import annotations

import pytest
import torch

from bmnas.backbones.waveform import masked


@pytest.fixture
def spectrograms() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(200, 60, 40)


def test_masked_frames_and_bands_become_the_samples_mean(spectrograms: torch.Tensor) -> None:
    changed = masked(spectrograms)
    lost = changed != spectrograms
    frames, bands = lost.all(2), lost.all(1)
    assert torch.equal(lost, frames.unsqueeze(2) | bands.unsqueeze(1))
    mean = spectrograms.mean((1, 2), keepdim=True).expand_as(changed)
    assert torch.equal(changed[lost], mean[lost])


def test_at_most_15_per_cent_of_an_axis_is_lost(spectrograms: torch.Tensor) -> None:
    lost = masked(spectrograms) != spectrograms
    for share, count in ((lost.all(2).float().mean(1), 60), (lost.all(1).float().mean(1), 40)):
        assert float(share.max()) <= 0.15 + 1 / count
        assert float(share.mean()) == pytest.approx(0.075, abs=0.02)


def test_the_same_seed_masks_the_same(spectrograms: torch.Tensor) -> None:
    torch.manual_seed(5)
    first = masked(spectrograms)
    torch.manual_seed(5)
    assert torch.equal(masked(spectrograms), first)
