"""Models that the benchmark of the server serves, made up: their time counts, not their answers."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bmnas_serve.manifest import InputSpec, Manifest, TaskSpec, TensorSpec
from onnx import TensorProto, helper, numpy_helper


def _write_bundle(
    folder: Path, nodes: list[Any], weights: dict[str, np.ndarray], *inputs: Any
) -> Path:
    """Write a bundle of ``nodes`` that give ``logits`` of ten classes for ``inputs``."""
    folder.mkdir()
    graph = helper.make_graph(
        nodes,
        folder.name,
        [helper.make_tensor_value_info(n, k, ["batch", *shape]) for n, k, shape in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(x, name) for name, x in weights.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, folder / "model.onnx")
    names = {TensorProto.UINT8: "uint8", TensorProto.FLOAT: "float32"}
    manifest = Manifest(
        name=folder.name,
        task=TaskSpec(folder.name, "multiclass"),
        inputs=tuple(InputSpec(n, (-1, *shape), names[k]) for n, k, shape in inputs),
        outputs=(TensorSpec("logits", (-1, 10), "float32"),),
        class_names=tuple("0123456789"),
        files={"model.onnx": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()},
    )
    (folder / "manifest.json").write_text(json.dumps(manifest.to_file()))
    return folder


def audio_bundle(folder: Path) -> Path:
    """Write a network with the inputs of av-digits, 28 x 28 pixels and 8,000 numbers."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(32, 1, 64)).astype("f4"),
        "pixels": rng.normal(size=(784, 64)).astype("f4"),
        "second": rng.normal(size=(64, 32, 9)).astype("f4"),
        "last": rng.normal(size=(128, 10)).astype("f4"),
        "one": np.array([1], "i8"),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["sound", "one"], ["wave"]),
        helper.make_node("Conv", ["wave", "kernel"], ["maps"], strides=[8]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("Conv", ["active", "second"], ["deeper"], strides=[2]),
        helper.make_node("Relu", ["deeper"], ["heights"]),
        helper.make_node("GlobalAveragePool", ["heights"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["heard"]),
        helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["grey"], ["flat"]),
        helper.make_node("MatMul", ["flat", "pixels"], ["seen"]),
        helper.make_node("Concat", ["heard", "seen"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "last"], ["logits"]),
    ]
    image, sound = ("image", TensorProto.UINT8, (28, 28)), ("sound", TensorProto.FLOAT, (8000,))
    return _write_bundle(folder, nodes, weights, image, sound)


def slow_bundle(folder: Path) -> Path:
    """Write a network whose time grows with its rows: layers of a thousand on each of 64 parts."""
    rng = np.random.default_rng(0)
    sizes = (1, 1024, 1024, 10)
    weights = {
        f"w{i}": rng.normal(size=pair).astype("f4") / 32
        for i, pair in enumerate(itertools.pairwise(sizes))
    }
    weights["two"] = np.array([2], "i8")
    nodes = [helper.make_node("Unsqueeze", ["x", "two"], ["h0"])]
    for i in range(3):
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"p{i}"]))
        nodes.append(helper.make_node("Relu", [f"p{i}"], [f"h{i + 1}"]))
    weights["middle"] = np.array([1], "i8")
    nodes.append(helper.make_node("ReduceMean", ["h3", "middle"], ["logits"], keepdims=0))
    return _write_bundle(folder, nodes, weights, ("x", TensorProto.FLOAT, (64,)))
