"""A float32 graph in fewer bits: float16, int8 for CPUs, int8 for TensorRT.

What stands before a ``Log`` stays in float32, as the powers of a spectrum span many decades. So do
norms, whose variances do. Convolutions of few channels stay too where ranges are fixed: kernels of
int8 are slower there, and what is rounded first is rounded for all that follows.

Legend: B batch, O channels out.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxscript import ir

from bmnas_export.errors import ExportError

Batch = Mapping[str, NDArray[Any]]

#: What int8 is for: products with weights.
PRODUCTS = ("Conv", "MatMul", "Gemm")

#: Channels: those of pictures, of a sound or its spectrum; those of a first layer.
FEW, SOME = 4, 16

_INT16, _INT32 = onnx.TensorProto.INT16, onnx.TensorProto.INT32


def to_float16(source: Path) -> bytes:
    """Return the model in ``source`` in float16, with inputs and outputs in float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(source)
    with quiet():
        half = convert_float_to_float16(
            onnx.shape_inference.infer_shapes(model),
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, "LayerNormalization"],
            node_block_list=before_log(model),
        )
    # A value that several nodes read in float32 is cast for each of them, under one name.
    once = {node.output[0]: node for node in reversed(half.graph.node)}
    nodes = [node for node in half.graph.node if once[node.output[0]] is node]
    del half.graph.node[:], half.graph.value_info[:]
    half.graph.node.extend(nodes)
    # Casts stand at the end, behind the nodes that read them.
    sorted_model = ir.serde.deserialize_model(half)
    sorted_model.graph.sort()
    half = ir.serde.serialize_model(sorted_model)
    onnx.checker.check_model(half, full_check=True)
    content: bytes = half.SerializeToString(deterministic=True)
    return content


def quantize_static(
    source: Path,
    out: Path,
    batches: Iterable[Batch],
    operators: Iterable[str],
    *,
    narrow: int = FEW,
    tensorrt: bool = False,
) -> None:
    """Write ``source`` to ``out`` with ``operators`` in int8, their ranges seen on ``batches``.

    Convolutions of at most ``narrow`` channels stay. For ``tensorrt`` everything is signed and
    symmetric, else activations are unsigned and weights have seven bits: CPUs without VNNI add up
    pairs of products in 16.
    """
    from onnxruntime import quantization as q

    model, batches = onnx.load(source), list(batches)
    options = {}
    if tensorrt:
        options = {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
        }
    with quiet():
        q.quantize_static(
            source,
            out,
            _Reader(batches),
            op_types_to_quantize=list(operators),
            nodes_to_exclude=[*before_log(model), *narrow_convolutions(model, narrow)],
            per_channel=True,
            reduce_range=not tensorrt,
            activation_type=q.QuantType.QInt8 if tensorrt else q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            extra_options=options,
        )
    if not tensorrt:
        quantized = onnx.load(out)
        _correct_biases(quantized, model, batches)
        onnx.save(quantized, out)


def quantize_dynamic(source: Path, out: Path) -> None:
    """Write ``source`` to ``out`` with MatMuls by weights in int8, ranges found at each run."""
    from onnxruntime import quantization as q

    model = onnx.load(source)
    excluded = before_log(model)
    # With shapes that were noted for other types it fails.
    del model.graph.value_info[:]
    with quiet():
        q.quantize_dynamic(
            model,
            out,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=excluded,
            per_channel=True,
            reduce_range=True,
            weight_type=q.QuantType.QInt8,
        )


def widened(model: onnx.ModelProto) -> dict[str, str]:
    """Make inputs of int16 such of int32, as TensorRT takes none; return the types by name.

    Raises ExportError where something but a cast reads one.
    """
    dtypes = {}
    for entry in model.graph.input:
        kind = entry.type.tensor_type
        if kind.elem_type == _INT16:
            readers = {node.op_type for node in model.graph.node if entry.name in node.input}
            if readers - {"Cast"}:
                raise ExportError(
                    f"input {entry.name!r} is int16, which TensorRT does not take, and"
                    f" {', '.join(sorted(readers - {'Cast'}))} reads it, expected casts alone: cast"
                    " it first in the backbone"
                )
            kind.elem_type = _INT32
            dtypes[entry.name] = "int32"
    return dtypes


def before_log(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that a ``Log`` follows from, and of every ``Log``."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [node for node in model.graph.node if node.op_type == "Log"]
    found: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found[node.name] = None
            waiting += [makers[name] for name in node.input if name in makers]
    return list(found)


def narrow_convolutions(model: onnx.ModelProto, most: int) -> list[str]:
    """Return the names of convolutions over positions that read at most ``most`` channels."""
    weights = {weight.name: weight.dims for weight in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            _, channels, *kernel = weights[node.input[1]]
            groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
            if groups * channels <= most and max(kernel) > 1:
                found.append(node.name)
    return found


def _correct_biases(
    quantized: onnx.ModelProto, source: onnx.ModelProto, batches: Iterable[Batch]
) -> None:
    """Take out of the biases of convolutions what rounded weights add to their outputs' mean.

    b' = b - E[(W' - W) * x], the mean of each channel over ``batches`` and positions of what W' - W
    makes of the inputs (Nagel et al., 2019, Data-Free Quantization, section 4.2).
    """
    rounded = {tensor.name: tensor for tensor in quantized.graph.initializer}
    makers = {name: node for node in quantized.graph.node for name in node.output}
    readers = Counter(name for node in quantized.graph.node for name in node.input)
    found = {}
    for node in quantized.graph.node:
        made = [makers.get(name) for name in node.input[1:]] if node.op_type == "Conv" else []
        inputs = [maker.input for maker in made if maker is not None]
        if len(inputs) == 2 and all(names[0] in rounded for names in inputs):
            weight, bias = inputs
            if readers[bias[0]] == 1:  # else layers that differ share it
                values, scale = (numpy_helper.to_array(rounded[name]) for name in weight[:2])
                found[node.name] = values * scale.reshape(-1, *[1] * (values.ndim - 1)), bias
    shifts = _moved_means(source, {name: weight for name, (weight, _) in found.items()}, batches)
    for name, (_, bias) in found.items():
        numbers, step = (numpy_helper.to_array(rounded[part]) for part in bias[:2])
        moved = np.round(numbers - shifts[name] / step).astype(numbers.dtype)
        rounded[bias[0]].CopyFrom(numpy_helper.from_array(moved, bias[0]))


def _moved_means(
    model: onnx.ModelProto, weights: Mapping[str, NDArray[Any]], batches: Iterable[Batch]
) -> dict[str, NDArray[np.float64]]:
    """Return by how much the outputs (B, O, ...) of convolutions move, the mean (O,) by name.

    ``weights`` are what they would have in the place of their own.
    """
    if not weights:
        return {}
    exact = {tensor.name: tensor for tensor in model.graph.initializer}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    del graph.output[:]
    for node in model.graph.node:
        if node.name in weights:
            off = weights[node.name] - numpy_helper.to_array(exact[node.input[1]])
            moved = graph.node.add()
            moved.CopyFrom(node)
            moved.name = moved.output[0] = f"{node.name}.moved"
            moved.input[1:] = [f"{node.name}.off"]
            graph.initializer.append(numpy_helper.from_array(off, moved.input[1]))
            graph.output.append(onnx.ValueInfoProto(name=moved.output[0]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in graph.output]
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    rows = 0
    for batch in batches:
        found = session.run(names, dict(batch))
        rows += len(found[0])
        for name, value in zip(names, found, strict=True):
            sums[name] += value.reshape(*value.shape[:2], -1).mean(-1, dtype=np.float64).sum(0)
    return {name: sums[f"{name}.moved"] / rows for name in weights}


def producer() -> dict[str, str]:
    """Return the versions of what makes these files."""
    return {name: importlib.metadata.version(name) for name in ("bmnas", "onnx", "onnxruntime")}


class _Reader:
    """Hands batches to onnxruntime's calibration, one by one."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep advice of onnxruntime's tools off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
