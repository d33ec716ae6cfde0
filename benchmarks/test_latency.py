"""Latency of the found network on real test samples: torch eager, compiled, and onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bmnas_serve.session import Session
from pytest_benchmark.fixture import BenchmarkFixture

import bmnas
from benchmarks.cases import Finished
from bmnas.joint import raw_samples

BATCHES = (1, 64)


@pytest.mark.benchmark(group="latency")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_torch(benchmark: BenchmarkFixture, finished: Finished, compiled: bool, batch: int) -> None:
    network = bmnas.load_network(finished.run / "network.safetensors").network.eval()
    inputs, _ = raw_samples(finished.task, network, "test").batch(torch.arange(batch))
    forward: Callable[..., Any] = bmnas.Runtime.choose("cpu", compiled).compiled(network)

    def call() -> None:
        with torch.inference_mode():
            forward(*inputs)

    benchmark.pedantic(call, rounds=200, warmup_rounds=20)


@pytest.mark.benchmark(group="latency")
@pytest.mark.parametrize("batch", BATCHES)
def test_onnxruntime(benchmark: BenchmarkFixture, finished: Finished, batch: int) -> None:
    network = bmnas.load_network(finished.run / "network.safetensors").network
    inputs, _ = raw_samples(finished.task, network, "test").batch(torch.arange(batch))
    arrays = {name: x.numpy() for name, x in zip(network.modalities, inputs, strict=True)}
    session = Session.open(finished.bundle)
    benchmark.pedantic(session.run, args=(arrays,), rounds=200, warmup_rounds=20)
