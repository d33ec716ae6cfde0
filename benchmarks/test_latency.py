"""Latency of trained networks on real test samples: torch eager and compiled, and onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bmnas_serve.session import Session
from pytest_benchmark.fixture import BenchmarkFixture

import bmnas
from benchmarks.cases import SEARCHES, WAYS, Finished
from bmnas.pipeline.multimodal import raw_samples

BATCHES = (1, 64)


@pytest.mark.benchmark(group="latency: torch")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("way", WAYS)
def test_torch(
    benchmark: BenchmarkFixture, ways: dict[str, Finished], way: str, batch: int
) -> None:
    _time_torch(benchmark, ways[way], batch, compiled=False)


@pytest.mark.benchmark(group="latency: torch")
@pytest.mark.parametrize("batch", BATCHES)
def test_torch_compiled(benchmark: BenchmarkFixture, ways: dict[str, Finished], batch: int) -> None:
    _time_torch(benchmark, ways[SEARCHES[0]], batch, compiled=True)


@pytest.mark.benchmark(group="latency: onnxruntime")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("way", WAYS)
def test_onnxruntime(
    benchmark: BenchmarkFixture, ways: dict[str, Finished], way: str, batch: int
) -> None:
    finished = ways[way]
    network = bmnas.load_network(finished.run / "network.safetensors").network
    inputs = raw_samples(finished.task, network, "test").batch(torch.arange(batch)).inputs
    arrays = {name: x.numpy() for name, x in zip(network.modalities, inputs, strict=True)}
    session = Session.open(finished.bundle)
    benchmark.pedantic(session.run, args=(arrays,), rounds=200, warmup_rounds=20)


def _time_torch(
    benchmark: BenchmarkFixture, finished: Finished, batch: int, *, compiled: bool
) -> None:
    network = bmnas.load_network(finished.run / "network.safetensors").network.eval()
    inputs = raw_samples(finished.task, network, "test").batch(torch.arange(batch)).inputs
    forward: Callable[..., Any] = bmnas.Runtime.choose("cpu", compiled).compiled(network)

    def call() -> None:
        with torch.inference_mode():
            forward(*inputs)

    benchmark.pedantic(call, rounds=200, warmup_rounds=20)
