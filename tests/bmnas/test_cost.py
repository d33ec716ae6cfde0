from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import nn

import bmnas.machine.costs
from bmnas.backbones.conv import SequenceBackbone
from bmnas.features.reshape import Projection
from bmnas.machine.costs import (
    Latency,
    count_parameters,
    hardware,
    measure_latency,
    versions,
)
from bmnas.pipeline.multimodal import MultimodalNetwork, parameter_counts
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.network import FusionNetwork

C, L, K = 6, 4, 3


def network(*ops: str, cells: int = 1) -> MultimodalNetwork:
    torch.manual_seed(0)
    backbones = {name: SequenceBackbone(classes=K, shape=(8, 2)) for name in ("a", "b")}
    raw = {f"{n}.{f}": c for n, b in backbones.items() for f, c in _features(b)}
    steps = tuple(Step(op, ("x", "y")) for op in ops)
    chain = [Cell(("a.1", "b.1"), steps)]
    chain += [Cell(("a.1", f"cell{k}"), steps) for k in range(1, cells)]
    genotype = Genotype(tuple(raw), C, L, tuple(chain))
    return MultimodalNetwork(backbones, FusionNetwork(genotype, raw, classes=K, dropout=0.0))


def _features(backbone: SequenceBackbone) -> list[tuple[str, int]]:
    return list(zip(backbone.feature_names, backbone.feature_channels, strict=True))


# Weights of each operation: attention has a LayerNorm over (C, L); linear_glu two linear layers
# with bias and two BatchNorms; concat_fc one linear layer of 2C and one BatchNorm.
LAYER_NORM = 2 * C * L
WEIGHTS = {
    "sum": 0,
    "attention": LAYER_NORM,
    "linear_glu": 2 * (C * C + C) + 2 * 2 * C,
    "concat_fc": 2 * C * C + C + 2 * C,
}


@pytest.mark.parametrize("op", WEIGHTS)
@pytest.mark.parametrize("cells", [1, 2])
def test_the_fusion_network_is_counted_by_hand(op: str, cells: int) -> None:
    made = network(op, cells=cells)
    reshape = sum(raw * C + C + 2 * C for raw in _raw(made))
    # One step: no merge after it; the Cell ends in a LayerNorm.
    expected = reshape + cells * (WEIGHTS[op] + LAYER_NORM) + cells * LAYER_NORM
    counts = parameter_counts(made)
    assert counts["fusion"] == expected
    assert counts["classifier"] == cells * C * L * K + K
    assert counts["backbones"] == count_parameters(made.backbones) > 0


def test_two_steps_are_merged_and_zero_steps_are_not_counted() -> None:
    two = parameter_counts(network("sum", "sum"))["fusion"]
    one = parameter_counts(network("sum"))["fusion"]
    assert two - one == (2 * C * C + C) + 2 * C  # linear 2C to C, BatchNorm
    # What is left is merged all the same: the genotype has two steps.
    dropped = parameter_counts(network("sum", "zero"))["fusion"]
    assert dropped - one == (C * C + C) + 2 * C


def test_backbones_count_only_what_is_run() -> None:
    made = network("sum")
    whole = SequenceBackbone(classes=K, shape=(8, 2))
    assert parameter_counts(made)["backbones"] < 2 * count_parameters(whole)
    assert all(len(b.stages) == 1 for b in made.backbones.values())


def test_buffers_are_no_parameters() -> None:
    assert count_parameters(nn.BatchNorm1d(5)) == 10
    assert count_parameters(Projection(7, C, 0.0)) == 7 * C + C + 2 * C
    assert count_parameters(nn.Identity()) == 0


def _raw(made: MultimodalNetwork) -> list[int]:
    return [made.backbone(name).feature_channels[0] for name in ("a", "b")]


class Clock:
    """Time passes by the next of ``steps`` between the two looks at one call."""

    def __init__(self, steps: list[float]) -> None:
        self._steps = itertools.cycle(steps)
        self._now = 0.0

    def call(self) -> None:
        self._now += next(self._steps)

    def perf_counter(self) -> float:
        return self._now


def test_latency_is_median_and_99th_percentile_in_milliseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock([1e-3 * n for n in (3, 1, 2)])
    monkeypatch.setattr(bmnas.machine.costs.time, "perf_counter", clock.perf_counter)
    found = measure_latency(clock.call, repeats=3, warm_up=0)
    assert found.median_ms == pytest.approx(2)
    assert found.p99_ms == pytest.approx(2.98)  # linear between the ranks, as numpy.percentile
    assert found.repeats == 3
    assert json.loads(json.dumps(found.to_dict())) == {
        "median_ms": found.median_ms,
        "p99_ms": found.p99_ms,
        "repeats": 3,
    }


def test_warm_up_does_not_count_and_the_budget_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Half a second is a fifth of the budget: a third call is not needed to warm up.
    clock = Clock([0.2, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(bmnas.machine.costs.time, "perf_counter", clock.perf_counter)
    found = measure_latency(clock.call, repeats=100, warm_up=3, budget=2.5)
    assert found.median_ms == found.p99_ms == pytest.approx(1000)
    assert found.repeats == 3


def test_latency_of_a_real_call() -> None:
    linear, x = nn.Linear(8, 8), torch.zeros(1, 8)
    found = measure_latency(lambda: linear(x), repeats=20)
    assert isinstance(found, Latency)
    assert 0 < found.median_ms <= found.p99_ms
    assert found.repeats == 20


def test_hardware_and_versions_are_plain_and_filled() -> None:
    machine = hardware(torch.device("cpu"))
    assert json.loads(json.dumps(machine)) == machine
    assert set(machine) == {"processor", "cores", "threads"}
    assert machine["processor"]
    assert machine["threads"] == torch.get_num_threads()
    found = versions()
    assert found["torch"] == torch.__version__
    assert all(isinstance(version, str) and version for version in found.values())


def test_the_accelerator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert hardware(torch.device("cuda:1"))["accelerator"] == "card 1"


def test_a_package_that_is_not_installed_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise bmnas.machine.costs.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bmnas.machine.costs.metadata, "version", version)
    assert set(versions().values()) == {
        bmnas.machine.costs.platform.python_version(),
        "not installed",
    }
