from __future__ import annotations

import torch

from bmnas.machine.costs import count_parameters
from bmnas.spaces.fusions.features import Sizes
from bmnas.spaces.fusions.late_fusion import LateFusion

CHANNELS = {"image.1": 3, "image.2": 5, "audio.1": 4, "audio.2": 2}


def test_it_reads_the_last_feature_of_each_modality() -> None:
    fusion = LateFusion(CHANNELS, Sizes(8, 4, 3, 0.0))
    assert fusion.features == ("image.2", "audio.2")
    assert fusion.length == 4


def test_the_logits_are_the_mean_of_the_modalities() -> None:
    torch.manual_seed(0)
    fusion = LateFusion(CHANNELS, Sizes(8, 4, 3, 0.0))
    image, audio = torch.randn(6, 4, 5), torch.randn(6, 4, 2)
    first, second = fusion.classifiers
    expected = (first(image.flatten(1)) + second(audio.flatten(1))) / 2
    assert torch.allclose(fusion([image, audio]), expected)


def test_all_its_weights_are_its_classifier() -> None:
    fusion = LateFusion(CHANNELS, Sizes(8, 4, 3, 0.0))
    # Per modality: L * C_raw weights and one bias for each class.
    assert count_parameters(fusion) == 3 * (4 * 5 + 1) + 3 * (4 * 2 + 1)
    assert count_parameters(fusion.classifier) == count_parameters(fusion)


def test_one_modality_is_its_own_decision() -> None:
    fusion = LateFusion({"image.1": 2}, Sizes(8, 1, 2, 0.0))
    x = torch.randn(5, 1, 2)
    assert torch.equal(fusion([x]), fusion.classifiers[0](x.flatten(1)))
