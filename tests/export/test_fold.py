"""Norms before linear layers and open masks leave the graph; nothing changes but rounding."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from bmnas_export.graph import export_graph
from bmnas_serve.manifest import TensorSpec
from torch import nn


class Net(nn.Module):
    """Two norms that a linear layer reads, one that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.kept = (nn.BatchNorm1d(5) for _ in range(3))
        self.first, self.third = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second = nn.Linear(5, 5, bias=False)
        draw = torch.Generator().manual_seed(0)
        for norm in (self.one, self.two, self.kept):
            for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                x.data.copy_(torch.rand(5, generator=draw) + 0.5)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.first(self.one(inputs[0].relu()))
        x = self.second(self.two(x.tanh()))
        y = self.kept(x.sigmoid())
        return (self.third(y) + y,)


def test_norms_are_folded_into_the_linear_layer_that_reads_them() -> None:
    network, spec = Net().eval(), TensorSpec("x", (-1, 5), "float32")
    content = export_graph(network, [spec], [TensorSpec("y", (-1, 5), "float32")], {})
    graph = onnx.load_from_string(content).graph
    assert [node.op_type for node in graph.node].count("BatchNormalization") == 1
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    found = onnxruntime.InferenceSession(content).run(None, {"x": x})[0]
    with torch.no_grad():
        expected = network(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Rows(nn.Module):
    """A convolution whose norm comes once its channels lie last, and one that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(4, 6, 3, bias=b) for b in (True, False, False))
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(3))
        for norm in self.norms:
            for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(x, 0.5, 1.5)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.zeros(())
        for place, (layer, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            raw = layer(inputs[0]).transpose(1, 2)
            y = y + norm(raw.reshape(-1, 6)).view(raw.shape).relu()
            if place == 2:
                y = y + raw
        return (y.flatten(1),)


def test_norms_are_folded_into_a_convolution_with_its_channels_last() -> None:
    network, spec = Rows().eval(), TensorSpec("x", (-1, 4, 7), "float32")
    content = export_graph(network, [spec], [TensorSpec("y", (-1, 30), "float32")], {})
    graph = onnx.load_from_string(content).graph
    assert [node.op_type for node in graph.node].count("BatchNormalization") == 1
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    x = np.random.default_rng(0).normal(size=(3, 4, 7)).astype(np.float32)
    found = onnxruntime.InferenceSession(content).run(None, {"x": x})[0]
    with torch.no_grad():
        expected = network(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Masked(nn.Module):
    """An open mask that is added to what has its shape and to what has not, and one that masks."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = inputs[0]
        zero, low = torch.tensor(0.0), torch.tensor(-1e30)
        opened = torch.where(
            torch.ones(1, 1, 4, dtype=torch.bool).expand(x.shape[0], 3, 4), zero, low
        )
        masked = torch.where(x[:, :1] > 0, zero, low)
        y = (x + opened).softmax(-1)
        z = (x[:, :1] + opened).cumsum(1)
        return (y + z + (x + masked).softmax(-1),)


def test_masks_that_mask_nothing_are_not_added() -> None:
    network, spec = Masked().eval(), TensorSpec("x", (-1, 3, 4), "float32")
    content = export_graph(network, [spec], [TensorSpec("y", (-1, 3, 4), "float32")], {})
    operators = [node.op_type for node in onnx.load_from_string(content).graph.node]
    # Two of the result, the one that masks, and the one that makes three rows of one.
    assert operators.count("Add") == 4
    assert operators.count("Where") == 2
    x = np.random.default_rng(0).normal(size=(7, 3, 4)).astype(np.float32)
    found = onnxruntime.InferenceSession(content).run(None, {"x": x})[0]
    with torch.no_grad():
        expected = network(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
