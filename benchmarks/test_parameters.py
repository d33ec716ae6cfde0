"""Parameters: how many weights each way of fusing has; the time is that of building it."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import bmnas
from benchmarks.cases import Finished
from bmnas.baselines.late_fusion import LateFusion
from bmnas.cost import count_parameters
from bmnas.joint import channels_of
from bmnas.network import Fusion, FusionNetwork
from bmnas.strategies.random import random_genotype

CLASSES = 10


def _found(finished: Finished, channels: dict[str, int]) -> Callable[[], Fusion]:
    genotype = bmnas.Genotype.load(finished.run / "genotype.json")
    return lambda: FusionNetwork(genotype, channels, classes=CLASSES, dropout=0.0)


def _random(finished: Finished, channels: dict[str, int]) -> Callable[[], Fusion]:
    config = bmnas.load_preset("digits").search
    genotype = random_genotype(tuple(channels), config, Random(0))
    return lambda: FusionNetwork(genotype, channels, classes=CLASSES, dropout=0.0)


def _late(finished: Finished, channels: dict[str, int]) -> Callable[[], Fusion]:
    length = bmnas.load_preset("digits").search.length
    return lambda: LateFusion(channels, length=length, classes=CLASSES)


@pytest.mark.benchmark(group="parameters")
@pytest.mark.parametrize("make", [_found, _random, _late], ids=["found", "random", "late fusion"])
def test_parameters(
    benchmark: BenchmarkFixture,
    finished: Finished,
    make: Callable[[Finished, dict[str, int]], Callable[[], Fusion]],
) -> None:
    from bmnas.backbones import load_backbone

    backbones = {
        path.stem: load_backbone(path)[0]
        for path in sorted((finished.run / "backbones").glob("*.safetensors"))
    }
    network = benchmark.pedantic(make(finished, channels_of(backbones)), rounds=20)
    classifier = count_parameters(network.classifier)
    benchmark.extra_info["fusion"] = count_parameters(network) - classifier
    benchmark.extra_info["classifier"] = classifier
    benchmark.extra_info["backbones"] = sum(map(count_parameters, backbones.values()))
    # What the run recorded of the found network is what the network has.
    if make is _found:
        recorded = json.loads((finished.run / "metrics.json").read_text())["parameters"]
        assert recorded["fusion"] == benchmark.extra_info["fusion"]
