from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from bmnas.machine.costs import CostMeter, peak_memory
from bmnas.machine.runtime import Runtime


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Every look at the clock finds it one second later."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    return ticks


def test_seconds_go_to_their_stage(clock: Iterator[int]) -> None:
    meter = CostMeter()
    for name in ("weights", "validation", "weights"):
        with meter.stage(name):
            pass
    assert meter.seconds == {"compile": 0.0, "weights": 2.0, "validation": 1.0}


def test_a_stage_that_runs_counts_so_far(clock: Iterator[int]) -> None:
    meter = CostMeter()
    with meter.stage("train"):
        assert meter.seconds == {"compile": 0.0, "train": 1.0}
        assert meter.to_dict()["seconds"]["train"] == 2.0
    assert meter.seconds["train"] == 3.0


def test_stages_do_not_nest() -> None:
    meter = CostMeter()
    with (
        meter.stage("a"),
        pytest.raises(RuntimeError, match="stage b begins inside stage a"),
        meter.stage("b"),
    ):
        pass
    assert set(meter.seconds) == {"compile", "a"}


def test_a_stage_that_fails_counts(clock: Iterator[int]) -> None:
    meter = CostMeter()
    with pytest.raises(KeyError), meter.stage("train"):
        raise KeyError
    assert meter.seconds["train"] == 1.0


def test_torch_tells_of_what_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend="aot_eager"))
    forward = Runtime(torch.device("cpu"), compile=True).compiled(nn.Linear(2, 2))
    first, second = CostMeter(), CostMeter()
    for meter in (first, second):
        with meter.stage("weights"):
            forward(torch.zeros(3, 2)).sum().backward()
    assert first.seconds["compile"] > 0
    assert first.seconds["weights"] > 0
    assert second.seconds["compile"] == 0


def test_another_life_is_added() -> None:
    meter = CostMeter()
    with meter.stage("weights"):
        pass
    now = peak_memory()["resident_bytes"]
    meter.resume({"seconds": {"weights": 100.0, "rerank": 7.0}, "peak_memory": {"device_bytes": 5}})
    meter.resume({"seconds": {"weights": 10.0}, "peak_memory": {"resident_bytes": 1 << 60}})
    assert 110 < meter.seconds["weights"] < 111
    assert meter.seconds["rerank"] == 7.0
    assert meter.peak_memory == {"device_bytes": 5, "resident_bytes": 1 << 60}
    assert now < 1 << 60


def test_peak_memory_is_in_bytes_and_no_less_than_what_lies_in_memory_now() -> None:
    kept = bytearray(b"x") * (32 << 20)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    peak = peak_memory()["resident_bytes"]
    assert len(kept) < pages * os.sysconf("SC_PAGE_SIZE") <= peak < 1 << 40
