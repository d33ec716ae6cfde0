from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bmnas_export import precision
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def convolution(path: Path, groups: int, draw: np.random.Generator) -> Path:
    """Write a model of one convolution, 8 channels to 12, whose weights all are positive."""
    arrays = {"w": draw.random((12, 8 // groups, 3, 3)) ** 3, "b": draw.normal(size=12)}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, 16, 16])
        for name, channels in (("x", 8), ("y", 12))
    ]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "c", group=groups, pads=[1] * 4)
    weights = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def answers(path: Path, batch: dict[str, NDArray[Any]]) -> NDArray[Any]:
    (found,) = onnxruntime.InferenceSession(path).run(None, batch)
    array: NDArray[Any] = found
    return array


@pytest.mark.parametrize("groups", [1, 2])
def test_rounded_weights_do_not_move_the_mean(
    groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    source = convolution(tmp_path / "source.onnx", groups, draw)
    level = draw.uniform(0.5, 3, (8, 1, 1))
    batches = [{"x": (level * draw.random((5, 8, 16, 16))).astype(np.float32)} for _ in range(4)]
    x = {"x": np.concatenate([batch["x"] for batch in batches])}

    def off(name: str) -> NDArray[Any]:
        precision.quantize_static(source, tmp_path / name, batches, ["Conv"])
        apart: NDArray[Any] = answers(tmp_path / name, x) - answers(source, x)
        return np.abs(apart.mean((0, 2, 3)))

    corrected = off("corrected.onnx")
    monkeypatch.setattr(precision, "_refine", lambda *arguments: None)
    plain = off("plain.onnx")
    assert corrected.mean() < plain.mean() / 8


def test_a_bias_that_two_layers_share_stays(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    source = convolution(tmp_path / "source.onnx", 1, draw)
    batches = [{"x": draw.random((5, 8, 16, 16), np.float32)}]
    precision.quantize_static(source, tmp_path / "int8.onnx", batches, ["Conv"])
    model = onnx.load(tmp_path / "int8.onnx")
    (layer,) = (node for node in model.graph.node if node.op_type == "Conv")
    (bias,) = (node for node in model.graph.node if node.output[0] == layer.input[2])
    again = onnx.NodeProto()
    again.CopyFrom(bias)
    again.output[0] = "again"
    model.graph.node.insert(0, again)
    before = model.SerializeToString()
    precision._refine(model, onnx.load(source), batches)
    assert model.SerializeToString() == before


def test_errors_of_rounded_weights_cancel_out() -> None:
    draw = np.random.default_rng(0)
    # Inputs that go together, as after a layer: what one does, another can undo.
    inputs = draw.random((500, 4)) @ draw.random((4, 30)) + 0.05 * draw.random((500, 30))
    weights = draw.normal(size=(7, 30))
    steps = np.abs(weights).max(1) / 64

    def off(whole: NDArray[Any]) -> float:
        return float(np.square(inputs @ (whole * steps[:, None] - weights).T).mean() ** 0.5)

    found = precision._rounded_weights(weights, steps, inputs.T @ inputs)
    assert np.abs(found).max() <= 64
    np.testing.assert_array_equal(found, found.round())
    assert off(found) < off(np.round(weights / steps[:, None])) / 2


def test_patches_are_what_a_convolution_reads(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    model = onnx.load(convolution(tmp_path / "source.onnx", 1, draw))
    (node,) = model.graph.node
    more = {"strides": [2, 1], "dilations": [1, 2], "kernel_shape": [3, 3]}
    node.attribute.extend(helper.make_attribute(*each) for each in more.items())
    model.graph.output[0].type.tensor_type.ClearField("shape")
    x = draw.normal(size=(3, 8, 16, 16)).astype(np.float32)
    onnx.save(model, tmp_path / "strided.onnx")
    expected = answers(tmp_path / "strided.onnx", {"x": x})
    weight, bias = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    found = precision._patches(x, node, [3, 3]) @ weight.reshape(12, -1).T + bias
    found = found.reshape(3, *expected.shape[2:], 12).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_weights_of_inputs_that_are_always_zero_are_rounded_to_the_nearest() -> None:
    weights, steps = np.array([[0.24, -0.6, 1.9]]), np.array([0.5])
    found = precision._rounded_weights(weights, steps, np.zeros((3, 3)))
    np.testing.assert_array_equal(found, [[0, -1, 4]])
