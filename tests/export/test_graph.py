from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from bmnas_export.errors import ExportError
from bmnas_export.graph import OPSET, export_graph, graph_facts, joined, serialized, split
from bmnas_export.prepare import prepare, reference_network
from bmnas_serve.manifest import TensorSpec
from onnxscript import ir
from tiny_networks import tiny_network, tiny_task
from torch import Tensor, nn

from bmnas.machine.errors import UserError
from bmnas.training.heads import head_for

X = TensorSpec("x", (-1, 4), "float32")
Y = TensorSpec("y", (-1, 3), "float32")


class Compute(nn.Module):
    """A linear layer (4, 3) behind what a subclass does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return self.linear(self.before(x))  # type: ignore[no-any-return]

    def before(self, x: Tensor) -> Tensor:
        return x


def open_graph(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options)


def export(network: nn.Module, metadata: Mapping[str, str] | None = None) -> bytes:
    return export_graph(network.eval(), (X,), (Y,), metadata or {})


def test_any_batch_runs_and_is_torch_s(capfd: pytest.CaptureFixture[str]) -> None:
    network = Compute()
    session = open_graph(export(network))
    assert [node.shape for node in session.get_inputs()] == [["batch", 4]]
    assert [node.shape for node in session.get_outputs()] == [["batch", 3]]
    for batch in (1, 2, 3, 50):
        x = torch.randn(batch, 4)
        (received,) = session.run(["y"], {"x": x.numpy()})
        np.testing.assert_allclose(received, network(x).detach().numpy(), atol=1e-6)
    # The exporter's progress and advice are not the user's.
    assert capfd.readouterr() == ("", "")


def test_the_graph_says_what_made_it_and_nothing_of_where() -> None:
    model = onnx.load_from_string(export(Compute(), {"bmnas.version": "1.2", "bmnas.task": "pets"}))
    assert (model.producer_name, model.producer_version) == ("bmnas", "1.2")
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "bmnas.version": "1.2",
        "bmnas.task": "pets",
    }
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [OPSET]
    assert model.ir_version <= 13
    assert not model.doc_string
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (graph, *graph.node, *values):
        assert not part.doc_string
        assert not part.metadata_props


def test_names_of_tensors_inside_make_way() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, *inputs: Tensor) -> Tensor:
            x, y = inputs
            return x @ self.weight + y

    network = Named()
    inputs = (
        TensorSpec("weight", (-1, 4), "float32"),
        TensorSpec("matmul", (-1, 3), "float32"),
    )
    outputs = (TensorSpec("add", (-1, 3), "float32"),)
    session = open_graph(export_graph(network, inputs, outputs, {}))
    x, y = torch.randn(5, 4), torch.randn(5, 3)
    (received,) = session.run(["add"], {"weight": x.numpy(), "matmul": y.numpy()})
    np.testing.assert_allclose(received, network(x, y).detach().numpy(), atol=1e-6)


def test_every_dtype_of_an_input_stays() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, *inputs: Tensor) -> Tensor:
            image, words, sound = inputs
            rows: Tensor = self.table(words).sum(1)
            return image.float().flatten(1)[:, :3] + rows + sound

    network = Mixed().eval()
    inputs = (
        TensorSpec("image", (-1, 2, 2), "uint8"),
        TensorSpec("words", (-1, 6), "int64"),
        TensorSpec("sound", (-1, 3), "float32"),
    )
    session = open_graph(export_graph(network, inputs, (Y,), {}))
    arrays = {
        "image": np.random.default_rng(0).integers(0, 256, (3, 2, 2), dtype=np.uint8),
        "words": np.random.default_rng(0).integers(0, 5, (3, 6)),
        "sound": np.ones((3, 3), np.float32),
    }
    expected = network(*map(torch.from_numpy, arrays.values())).detach().numpy()
    np.testing.assert_allclose(session.run(None, arrays)[0], expected, rtol=1e-6)


class ListsSamples(Compute):
    def before(self, x: Tensor) -> Tensor:
        return torch.stack(list(x.unbind(0)))


class AddsTwo(Compute):
    def before(self, x: Tensor) -> Tensor:
        return x + torch.ones(2, 4)


@pytest.mark.parametrize("network", [ListsSamples, AddsTwo])
def test_a_batch_taken_for_a_constant_is_an_error(network: type[Compute]) -> None:
    with pytest.raises(ExportError, match="computes for one batch size only: ") as caught:
        export(network())
    assert "\n" not in str(caught.value)


def test_what_cannot_be_captured_is_one_line() -> None:
    class Branches(Compute):
        def before(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"torch\.export cannot capture the network: ") as caught:
        export(Branches())
    assert "\n" not in str(caught.value)


def test_an_operator_without_onnx_is_named() -> None:
    class Pools(Compute):
        def before(self, x: Tensor) -> Tensor:
            return F.adaptive_max_pool1d(torch.cat((x, x[:, :2]), 1), 4)

    with pytest.raises(ExportError, match=r"the operator aten\.adaptive_max_pool") as caught:
        export(Pools())
    assert "cannot be exported to ONNX: replace it in the backbone" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_not_what_was_promised_is_an_error() -> None:
    wide = TensorSpec("y", (-1, 7), "float32")
    with pytest.raises(ExportError, match=r"y: the graph has float32 \[-1, 3\], expected float32 "):
        export_graph(Compute().eval(), (X,), (wide,), {})
    with pytest.raises(ExportError, match="has 1 tensors where 2 are expected: y, z"):
        export_graph(Compute().eval(), (X,), (Y, TensorSpec("z", (-1, 3), "float32")), {})


def test_a_network_for_which_one_file_is_too_small_is_refused() -> None:
    # On meta, weights have a size and no memory.
    with pytest.raises(UserError, match=r"a network of 4\.0 GiB, expected less than 2 GiB"):
        export_graph(nn.Linear(2**15, 2**15, device="meta"), (X,), (Y,), {})


def test_equal_networks_give_equal_bytes() -> None:
    network = Compute()
    first = export(network)
    export(Compute())
    assert export(copy.deepcopy(network)) == first


def tiny_graph() -> bytes:
    """Return the graph of a whole network; another process runs this too."""
    trained = tiny_network(tiny_task(("vector", "vector")))
    network = prepare(reference_network(trained.network), head_for("multiclass"))
    inputs = [TensorSpec(name, (-1, 5), "float32") for name in ("m0", "m1")]
    outputs = [TensorSpec(name, (-1, 3), "float32") for name in ("logits", "probabilities")]
    return export_graph(network, inputs, outputs, {"b": "2", "a": "1"})


def test_another_process_gives_equal_bytes() -> None:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join((str(tests / "support"), str(tests / "export")))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, test_graph as t; sys.stdout.buffer.write(t.tiny_graph())",
        ],
        # The order of sets differs from process to process.
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path},
        capture_output=True,
        check=True,
    )
    assert len(done.stdout) > 1000
    assert done.stdout == tiny_graph()


def test_nodes_are_named_after_the_modules_that_they_come_from(tmp_path: Path) -> None:
    class Network(Compute):
        def __init__(self) -> None:
            super().__init__()
            self.fusion = nn.ModuleDict({"cells": nn.ModuleList([Compute(), Compute()])})
            # Equal layers would be one.
            nn.init.zeros_(self.fusion.get_parameter("cells.1.linear.bias"))

        def forward(self, *inputs: Tensor) -> Tensor:
            first, second = self.fusion["cells"]
            return first(*inputs) + second(*inputs).relu()  # type: ignore[no-any-return]

    class Whole(Compute):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.network(*inputs)  # type: ignore[no-any-return]

    path = tmp_path / "model.onnx"
    path.write_bytes(export(Whole()))
    names = [node.name for node in onnx.load(path).graph.node]
    assert sorted(names) == [
        "fusion.cells.0.linear/Gemm",
        "fusion.cells.1.linear/Gemm",
        "network/Add",
        "network/Relu",
    ]
    parts = {"fusion.cells.0": 1, "fusion.cells.1": 1, "network": 2}
    assert graph_facts(path)["parts"] == parts
    # A file of an earlier version does not say.
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = node.op_type
    onnx.save(model, path)
    assert "parts" not in graph_facts(path)


def test_weights_of_any_type_and_shape_are_encoded_as_onnx_encodes_them() -> None:
    arrays = {
        "scalar": np.float32(1.5),
        "empty": np.zeros((0, 3), np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "numbers": np.array([-1, 2**40], np.int64),
        "flags": np.array([True, False]),
        "halves": np.array([[0.5, -2]], np.float16),
    }
    graph = ir.Graph([], [], nodes=[], name="weights", opset_imports={"": 20})
    for name, array in arrays.items():
        graph.register_initializer(ir.Value(name=name, const_value=ir.Tensor(np.asarray(array))))
    found = onnx.load_from_string(serialized(ir.Model(graph, ir_version=10)))
    received = {t.name: onnx.numpy_helper.to_array(t) for t in found.graph.initializer}
    assert received.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(received[name], array)


def test_a_model_is_split_from_its_weights_and_joined_with_them() -> None:
    content = export(Compute(), {"key": "value"})
    whole, (model, weights) = onnx.load_from_string(content), split(content)
    assert sum(np.prod(weight.dims) for weight in whole.graph.initializer) == 4 * 3 + 3
    assert b"".join(joined(model, weights)) == content
    # What others write has weights in between.
    model, weights = split(whole.SerializeToString())
    assert onnx.load_from_string(b"".join(joined(model, weights))) == whole
    assert len(weights) == len(whole.graph.initializer)
    del whole.graph.initializer[:]
    assert model == whole
