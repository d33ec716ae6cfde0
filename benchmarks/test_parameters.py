"""Parameters: how many weights each way of fusing has; the time is that of reading its file."""

from __future__ import annotations

import json

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import bmnas
from benchmarks.cases import WAYS, Finished
from bmnas.pipeline.multimodal import parameter_counts


@pytest.mark.benchmark(group="parameters")
@pytest.mark.parametrize("way", WAYS)
def test_parameters(benchmark: BenchmarkFixture, ways: dict[str, Finished], way: str) -> None:
    run = ways[way].run
    found = benchmark.pedantic(bmnas.load_network, (run / "network.safetensors",), rounds=10)
    counts = parameter_counts(found.network)
    benchmark.extra_info.update(counts)
    # What the run recorded of the network is what the network has.
    assert json.loads((run / "metrics.json").read_text())["parameters"] == counts
