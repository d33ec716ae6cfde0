from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bmnas_export import ExportError, time_module, timing
from bmnas_serve.errors import InferenceError
from bmnas_serve.runner import OnnxRunner
from torch import Tensor, nn

from bmnas.features.reshape import Pool, Projection
from bmnas.pipeline.latency import LatencyTable
from bmnas.spaces.mmnas.operations import Around, Block


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_REPEATS", 5)


class Pooled(nn.Module):
    """What would not export as it is: adaptive pooling, and a norm behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.project = Pool(4), Projection(3, 8, 0.1)

    def forward(self, *inputs: Tensor) -> Tensor:
        y: Tensor = self.project(self.pool(inputs[0]))
        return y


def test_a_module_is_timed_as_a_graph() -> None:
    assert time_module(Pooled().eval(), [torch.rand(1, 3, 7)]) > 0


def test_parts_may_take_tensors_in_dataclasses(tmp_path: Path) -> None:
    around = Around(torch.ones(1, 5, dtype=torch.bool), torch.rand(1, 3, 8), torch.ones(1, 3) > 0)
    block = Block("ga", 8, 4, 2, "layer", 0.0).eval()
    table = LatencyTable(tmp_path / "latencies.json", time_module)
    found = table.part("block", block, (torch.rand(1, 5, 8), around))
    assert found >= 0  # less what an empty graph takes, by this clock
    assert table.part("block", block, ()) == found  # it is known


def test_what_does_not_export_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return torch.cdist(inputs[0], inputs[0], p=3.0)

    with pytest.raises(ExportError, match="cdist"):
        time_module(Odd(), [torch.rand(1, 4)])


def test_what_onnxruntime_cannot_run_is_an_error_of_the_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failed(self: OnnxRunner, inputs: object) -> None:
        raise InferenceError("no kernel")

    monkeypatch.setattr(OnnxRunner, "run", failed)
    with pytest.raises(ExportError, match="no kernel"):
        time_module(Pooled().eval(), [torch.rand(1, 3, 7)])
