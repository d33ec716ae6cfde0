"""Search cost: one supernet step, and whole searches from a warm feature cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import bmnas
from benchmarks.cases import NTU, PRESET, Finished, products, step
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies import STRATEGIES
from tests.support.plain_supernet import PlainSupernet

EAGER = bmnas.Runtime(torch.device("cpu"), compile=False)
COMPILED = bmnas.Runtime(torch.device("cpu"), compile=True)


@pytest.mark.benchmark(group="search cost: supernet step (NTU configuration)")
@pytest.mark.parametrize("form", [PlainSupernet, Supernet], ids=["plain", "supernet"])
def test_supernet_step(benchmark: BenchmarkFixture, form: type[nn.Module]) -> None:
    benchmark.pedantic(step(NTU, form, EAGER), rounds=40, warmup_rounds=5)


@pytest.mark.benchmark(group="search cost: supernet step (NTU configuration)")
def test_supernet_step_in_bfloat16(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(step(NTU, Supernet, EAGER, bfloat16=True), rounds=40, warmup_rounds=5)


@pytest.mark.benchmark(group="search cost: supernet step (NTU configuration)")
def test_supernet_step_compiled(benchmark: BenchmarkFixture) -> None:
    benchmark.pedantic(step(NTU, Supernet, COMPILED), rounds=40, warmup_rounds=5)


@pytest.mark.benchmark(group="search cost: supernet step (NTU configuration)")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_products_alone(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    benchmark.pedantic(products(NTU, EAGER.device, dtype), rounds=40, warmup_rounds=5)


@pytest.mark.benchmark(group="search cost: a search on digits, features cached")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_search(
    benchmark: BenchmarkFixture, ways: dict[str, Finished], strategy: str, tmp_path: Path
) -> None:
    finished = ways[f"search {strategy}"]

    def search() -> bmnas.SearchResult:
        return bmnas.search(
            finished.task,
            config=bmnas.load_preset(PRESET),
            run=tmp_path / strategy,
            strategy=strategy,
            existing="overwrite",
            backbones=finished.backbones,
        )

    found = benchmark.pedantic(search, rounds=3)
    benchmark.extra_info["validation"] = found.validation
    benchmark.extra_info["candidates"] = found.metrics["search"]["candidates"]
    benchmark.extra_info["samples_seen"] = found.metrics["search"]["samples_seen"]
