"""The model once more, for what a client has: images of any size, waveforms of any length.

Legend: B batch, H height, W width, C colours, T samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bmnas_serve.manifest import MODEL_FILE, TensorSpec
from bmnas_serve.runner import OnnxRunner
from bmnas_serve.session import Session
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bmnas_export.errors import ExportError
from bmnas_export.graph import joined, split
from bmnas_export.measure import TOLERANCE

PIPELINE_FILE = "pipeline.onnx"

_RESIZED = (
    "any height and width: resized bilinearly to the model's, half-pixel centres, no antialias,"
    " rounded to whole numbers where those are expected"
)
_FITTED = "any length from 1: zeros are added at the end, or the end is cut off"


def write_pipeline(
    folder: Path, inputs: Sequence[TensorSpec], types: Mapping[str, str]
) -> dict[str, Any]:
    """Write ``pipeline.onnx``, which takes raw inputs, beside ``model.onnx``.

    ``types`` are the modalities' by name. Returns for each input whose size is free its shape, -1
    where any length is good, and what is done to it; writes nothing where there is none. Texts stay
    numbers: there is no tokeniser in ONNX that all runtimes have.
    """
    model, weights = split((folder / MODEL_FILE).read_bytes())
    before: list[onnx.NodeProto] = []
    taken: dict[str, Any] = {}
    for value in model.graph.input:
        spec = next(spec for spec in inputs if spec.name == value.name)
        match types[spec.name]:
            case "image":
                nodes, free, what = _resized(spec, model), 2, _RESIZED
            case "waveform":
                nodes, free, what = _fitted(spec, model), 1, _FITTED
            case _:
                continue
        before += nodes
        for axis in range(1, 1 + free):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{spec.name}_{axis}"
        shape = [-1] * (1 + free) + list(spec.shape[1 + free :])
        taken[spec.name] = {"shape": shape, "dtype": spec.dtype, "size": what}
    if not taken:
        return {}
    for node in model.graph.node:
        node.input[:] = [_sized(name) if name in taken else name for name in node.input]
    nodes = [*before, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with (folder / PIPELINE_FILE).open("wb") as file:
        file.writelines(joined(model, weights))
    return taken


def check_pipeline(folder: Path, session: Session, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ExportError when the pipeline is far from the model on inputs (B, …) of its sizes."""
    found = OnnxRunner.open(folder / PIPELINE_FILE).run(arrays)
    shares = [
        np.abs(found[name] - expected).max() / (np.abs(expected).max() or 1.0)
        for name, expected in session.run(arrays).items()
    ]
    apart = np.max(shares)  # not Python's, which may pass over a NaN
    if not apart <= TOLERANCE:
        raise ExportError(
            f"{folder / PIPELINE_FILE}: differs from {MODEL_FILE} by {apart:.2g} of the largest"
            f" number on samples of its size, expected at most {TOLERANCE:g}"
        )


def _sized(name: str) -> str:
    return f"{name}.sized"


def _constant(model: onnx.ModelProto, name: str, values: Any, dtype: str = "int64") -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def _resized(spec: TensorSpec, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes from an image (B, any, any[, C]) to (B, H, W[, C])."""
    name, colour = spec.name, len(spec.shape) == 4
    whole = spec.dtype == "uint8"
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
    one = [] if colour else [_constant(model, f"{name}.channel", [1])]
    # Channels first: not every runtime resizes the other layout.
    steps += [("Transpose", [], {"perm": [0, 3, 1, 2]}) if colour else ("Unsqueeze", one, {})]
    # Not the attribute axes, with which onnxruntime cannot move a Transpose past a Resize.
    rows, size = f"{name}.rows", f"{name}.size"
    side = _constant(model, f"{name}.side", spec.shape[1:3])
    steps += [("Resize", ["", "", size], {"mode": "linear", "antialias": 0})]
    steps += [("Round", [], {})] if whole else []
    steps += [("Transpose", [], {"perm": [0, 2, 3, 1]}) if colour else ("Squeeze", one, {})]
    steps += [("Cast", [], {"to": helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))})]
    nodes, read = [], name
    for number, (kind, more, attributes) in enumerate(steps, start=1):
        written = _sized(name) if number == len(steps) else f"{name}.step{number}"
        if kind == "Resize":
            nodes.append(helper.make_node("Shape", [read], [rows], start=0, end=2))
            nodes.append(helper.make_node("Concat", [rows, side], [size], axis=0))
        nodes.append(helper.make_node(kind, [read, *more], [written], written, **attributes))
        read = written
    return nodes


def _fitted(spec: TensorSpec, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes from a waveform (B, any) to (B, T)."""
    name, samples = spec.name, spec.shape[1]
    length = _constant(model, f"{name}.length", [samples])
    zero, one = _constant(model, f"{name}.zero", [0]), _constant(model, f"{name}.one", [1])
    silence = helper.make_tensor(
        "value", helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), [1], [0]
    )
    # Not Pad, which onnxruntime does not have for int16.
    return [
        helper.make_node("Shape", [name], [f"{name}.rows"], start=0, end=1),
        helper.make_node("Concat", [f"{name}.rows", length], [f"{name}.shape"], axis=0),
        helper.make_node("ConstantOfShape", [f"{name}.shape"], [f"{name}.silence"], value=silence),
        helper.make_node("Concat", [name, f"{name}.silence"], [f"{name}.longer"], axis=1),
        helper.make_node("Slice", [f"{name}.longer", zero, length, one, one], [_sized(name)]),
    ]
