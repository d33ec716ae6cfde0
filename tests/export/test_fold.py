"""BatchNormalizations before linear layers leave the graph, and nothing changes but rounding."""

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
