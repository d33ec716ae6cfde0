"""Tiny ONNX models and bundles that the serving tests build inline."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bmnas_serve.manifest import InputSpec, Manifest, TaskSpec, TensorSpec
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("cat", "dog", "owl")


def save_model(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Path:
    """Write an ONNX model of ``nodes``; checked before it is written."""
    graph = helper.make_graph(nodes, "tiny", inputs, outputs)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="tests"
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def value(name: str, kind: int, shape: list[Any]) -> Any:
    """Return the declaration of an input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, array: np.ndarray) -> Any:
    """Return a node that yields ``array``."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def save_classifier(path: Path, *, work: int = 0, seed: int = 0) -> Path:
    """Write a model of image (B, 2, 3) uint8 and sound (B, 4) float32 to three classes.

    ``work`` > 0 adds a product of that many rows squared, so that a run takes its time.
    ``seed`` is that of the weights.
    """
    rng = np.random.default_rng(seed)
    nodes = [
        constant("w_image", rng.normal(size=(6, 3)).astype("f4")),
        constant("w_sound", rng.normal(size=(4, 3)).astype("f4")),
        constant("flat", np.array([-1, 6], "i8")),
        helper.make_node("Cast", ["image"], ["image_f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["image_f", "flat"], ["image_flat"]),
        helper.make_node("MatMul", ["image_flat", "w_image"], ["a"]),
        helper.make_node("MatMul", ["sound", "w_sound"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["logits" if not work else "quick"]),
    ]
    if work:
        # The square is of a value that depends on the input, or it would be folded away.
        nodes += [
            constant("side", np.array([work, work], "i8")),
            constant("zero", np.zeros((), "f4")),
            helper.make_node("ReduceSum", ["sound"], ["total"], keepdims=0),
            helper.make_node("Expand", ["total", "side"], ["square"]),
            helper.make_node("MatMul", ["square", "square"], ["product"]),
            helper.make_node("ReduceMax", ["product"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "zero"], ["nothing"]),
            helper.make_node("Add", ["quick", "nothing"], ["logits"]),
        ]
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    return save_model(
        path,
        nodes,
        [
            value("image", TensorProto.UINT8, ["batch", 2, 3]),
            value("sound", TensorProto.FLOAT, ["batch", 4]),
        ],
        [
            value("logits", TensorProto.FLOAT, ["batch", 3]),
            value("probabilities", TensorProto.FLOAT, ["batch", 3]),
        ],
    )


def classifier_manifest(**changes: Any) -> Manifest:
    """Return the manifest of ``save_classifier``'s model, with ``changes``."""
    manifest = Manifest(
        name="pets",
        task=TaskSpec("pets", "multiclass"),
        inputs=(
            InputSpec("image", (-1, 2, 3), "uint8", "grey values", {"scale": 255}),
            InputSpec("sound", (-1, 4), "float32", "waveform", {"sample_rate": 8000}),
        ),
        outputs=(
            TensorSpec("logits", (-1, 3), "float32", "before the softmax"),
            TensorSpec("probabilities", (-1, 3), "float32"),
        ),
        class_names=CLASSES,
        files={"model.onnx": "0" * 64},
        scores={"accuracy": 0.9},
    )
    return dataclasses.replace(manifest, **changes)


def save_bundle(folder: Path, *, work: int = 0, seed: int = 0, **changes: Any) -> Path:
    """Write a bundle of ``save_classifier``'s model; ``changes`` go into its manifest."""
    folder.mkdir(parents=True)
    model = save_classifier(folder / "model.onnx", work=work, seed=seed)
    files = {"model.onnx": hashlib.sha256(model.read_bytes()).hexdigest()}
    manifest = classifier_manifest(**{"files": files, **changes})
    (folder / "manifest.json").write_text(json.dumps(manifest.to_file()))
    return folder


def sample(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return inputs of ``save_classifier``'s model."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (batch, 2, 3), dtype=np.uint8),
        "sound": rng.normal(size=(batch, 4)).astype(np.float32),
    }
