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
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

_SEVEN_BITS = 64  # the largest weight of them
_MOST_INPUTS, _PATCHES, _DAMPED = 1152, 2048, 0.01

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
        _refine(quantized, model, batches)
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
            (groups,) = _attribute(node, "group", [1])
            if groups * channels <= most and max(kernel) > 1:
                found.append(node.name)
    return found


@dataclass(frozen=True)
class _Rounded:
    """A convolution in int8: as it was, and the names of its weights, their steps and its bias."""

    plain: onnx.NodeProto
    weight: str
    steps: str
    bias: Sequence[str]


def _refine(quantized: onnx.ModelProto, source: onnx.ModelProto, batches: Sequence[Batch]) -> None:
    """Round the weights of convolutions so that errors cancel out on ``batches``, then the biases.

    GPTQ (Frantar et al., ICLR 2023): input by input, what rounding one weight does to the outputs
    is made good by the weights that are still to be rounded. Then what is left of it in an output's
    mean is taken out of its bias (Nagel et al., 2019, Data-Free Quantization, section 4.2).
    """
    rounded = {tensor.name: tensor for tensor in quantized.graph.initializer}
    exact = {tensor.name: tensor for tensor in source.graph.initializer}
    layers = _rounded_layers(quantized, source)
    square: dict[str, Any] = {
        each.plain.name: 0.0 for each in layers if _pairs_count(each.plain, exact)
    }
    for values in _values(source, [each.plain.input[0] for each in layers], batches):
        for each in layers:
            if each.plain.name in square:
                kernel = rounded[each.weight].dims[2:]
                x = _patches(values[each.plain.input[0]], each.plain, kernel)
                square[each.plain.name] += (x.T @ x).astype(np.float64)
    off = {}
    for each in layers:
        weight, steps = (numpy_helper.to_array(rounded[n]) for n in (each.weight, each.steps))
        wanted = numpy_helper.to_array(exact[each.plain.input[1]])
        if each.plain.name in square:
            rows = wanted.reshape(len(wanted), -1)
            better = _rounded_weights(rows, steps, square.pop(each.plain.name))
            weight = better.reshape(weight.shape).astype(weight.dtype)
            rounded[each.weight].CopyFrom(numpy_helper.from_array(weight, each.weight))
        off[each.plain.name] = weight * steps.reshape(-1, *[1] * (weight.ndim - 1)) - wanted
    shifts = _moved_means(source, off, batches)
    for each in layers:
        numbers, step = (numpy_helper.to_array(rounded[name]) for name in each.bias[:2])
        moved = np.round(numbers - shifts[each.plain.name] / step).astype(numbers.dtype)
        rounded[each.bias[0]].CopyFrom(numpy_helper.from_array(moved, each.bias[0]))


def _rounded_layers(quantized: onnx.ModelProto, source: onnx.ModelProto) -> list[_Rounded]:
    """Return the convolutions whose weights and biases are in integers, and are theirs alone."""
    plain = {node.name: node for node in source.graph.node}
    stored = {tensor.name for tensor in quantized.graph.initializer}
    makers = {name: node for node in quantized.graph.node for name in node.output}
    readers = Counter(name for node in quantized.graph.node for name in node.input)
    found = []
    for node in quantized.graph.node:
        made = [makers.get(name) for name in node.input[1:]] if node.op_type == "Conv" else []
        inputs = [maker.input for maker in made if maker is not None]
        if len(inputs) == 2 and all(n[0] in stored and readers[n[0]] == 1 for n in inputs):
            weight, bias = inputs
            found.append(_Rounded(plain[node.name], weight[0], weight[1], bias))
    return found


def _pairs_count(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Tell whether outputs of a convolution have few enough inputs to look at all pairs of them."""
    count = math.prod(weights[node.input[1]].dims[1:])
    return count <= _MOST_INPUTS and _attribute(node, "group", [1]) == [1]


def _attribute(node: onnx.NodeProto, name: str, default: Sequence[int]) -> Sequence[int]:
    for entry in node.attribute:
        if entry.name == name:
            return [entry.i] if entry.type == onnx.AttributeProto.INT else list(entry.ints)
    return default


def _patches(x: NDArray[Any], node: onnx.NodeProto, kernel: Sequence[int]) -> NDArray[np.float32]:
    """Return what outputs of a convolution read of ``x`` (B, C, ...): (patches, C * kernel).

    Of many outputs some are taken, spread evenly.
    """
    rank = len(kernel)
    strides, dilations = (_attribute(node, n, [1] * rank) for n in ("strides", "dilations"))
    pads = _attribute(node, "pads", [0] * 2 * rank)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    extent = [1 + (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, extent, tuple(range(2, 2 + rank)))
    every = (slice(None, None, step) for step in (1, 1, *strides, *dilations))
    windows = np.moveaxis(windows[tuple(every)], 1, 1 + rank)
    sizes = windows.shape[: 1 + rank]
    count = math.prod(sizes)
    chosen = np.linspace(0, count - 1, min(count, _PATCHES)).astype(int)
    return windows[np.unravel_index(chosen, sizes)].reshape(len(chosen), -1)


def _rounded_weights(
    weights: NDArray[Any], steps: NDArray[Any], square: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ``weights`` (O, n) in whole ``steps`` (O,), for inputs x with x x^T in ``square``.

    GPTQ, with the inverse's Cholesky factor and a hundredth of the mean square added.
    """
    left, steps = weights.astype(np.float64), steps.astype(np.float64)
    mean = np.diag(square).mean() or 1.0
    inverse = np.linalg.inv(square + _DAMPED * mean * np.eye(len(square)))
    factor = np.linalg.cholesky(inverse).T
    found = np.empty_like(left)
    for place in range(left.shape[1]):
        column = np.round(left[:, place] / steps)
        found[:, place] = np.clip(column, -_SEVEN_BITS, _SEVEN_BITS)
        error = (left[:, place] - found[:, place] * steps) / factor[place, place]
        left[:, place:] -= np.outer(error, factor[place, place:])
    return found


def _moved_means(
    model: onnx.ModelProto, off: Mapping[str, NDArray[Any]], batches: Iterable[Batch]
) -> dict[str, NDArray[np.float64]]:
    """Return by how much the outputs (B, O, ...) of convolutions move, the mean (O,) by name.

    ``off`` is what is added to their weights, by their names.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for node in model.graph.node:
        if node.name in off:
            moved = watched.graph.node.add()
            moved.CopyFrom(node)
            moved.name = moved.output[0] = f"{node.name}.moved"
            moved.input[1:] = [f"{node.name}.off"]
            weight = numpy_helper.from_array(off[node.name].astype(np.float32), moved.input[1])
            watched.graph.initializer.append(weight)
    sums: dict[str, Any] = dict.fromkeys(off, 0.0)
    rows = 0
    for values in _values(watched, [f"{name}.moved" for name in off], batches):
        for name in off:
            value = values[f"{name}.moved"]
            sums[name] += value.reshape(*value.shape[:2], -1).mean(-1, dtype=np.float64).sum(0)
        rows += len(value)
    return {name: total / rows for name, total in sums.items()}


def _values(
    model: onnx.ModelProto, names: Iterable[str], batches: Iterable[Batch]
) -> Iterator[Batch]:
    """Yield the values ``names`` of a run of ``model`` for each batch; nothing without names."""
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for batch in batches:
        yield dict(zip(wanted, session.run(wanted, dict(batch)), strict=True))


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
