"""A prepared network as an ONNX model: captured, translated, cleaned, checked.

Legend: B batch, K classes.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from bmnas_serve.manifest import TensorSpec
from onnxscript import ir
from torch import nn

from bmnas.machine.errors import UserError
from bmnas_export.errors import ExportError, first_line
from bmnas_export.fold import drop_open_masks, fold_norms

#: onnxruntime reads up to 26, TensorRT up to 25; 20 has everything that is needed.
OPSET = 20

BATCH = "batch"

_LARGEST = 2**31 - 2**20  # bytes: what one protobuf file can hold, less room for the graph
_TRACED_BATCH = 2  # torch takes an axis of one for a constant
_SIZED = 2  # protobuf's kind of a field that says its size
#: The place of nodes of no module below the network.
_WHOLE = "network"
_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_FIXED = re.compile(r"specializ|Constraints violated", re.IGNORECASE)


def export_graph(
    network: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
) -> bytes:
    """Return the serialised ONNX model of ``network``; equal networks give equal bytes.

    ``network`` takes ``*inputs``, one tensor for each, and returns one for each of ``outputs``; all
    shapes start with -1, the batch axis, which stays free. ``metadata`` is stored in the
    model. Raises UserError for a network that one file cannot hold, ExportError when it cannot be
    exported or when the graph is not what ``inputs`` and ``outputs`` say.
    """
    _check_size(network)
    program = translate(network, inputs)
    _clean(program.model, inputs, outputs, metadata)
    content = serialized(program.model)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {first_line(error)}") from error
    return content


def translate(network: nn.Module, inputs: Sequence[TensorSpec]) -> torch.onnx.ONNXProgram:
    """Return torch's translation of ``network``, with less to compute.

    Raises ExportError as ``export_graph`` does.
    """
    collected = gc.isenabled()
    # Hundreds of thousands of objects are made, all of which stay: looking for others takes a tenth
    # of the time.
    gc.disable()
    try:
        with _quiet():
            program = _translate(_capture(network, inputs))
    finally:
        if collected:
            gc.enable()
    fold_norms(program.model)
    drop_open_masks(program.model)
    return program


def serialized(model: ir.Model) -> bytes:
    """Return the bytes of ``model``, which loses its weights: they come last, encoded one by one.

    Encoding all at once, protobuf takes four times their memory.
    """
    weights: list[bytes | memoryview] = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        proto = onnx.TensorProto(name=name, data_type=tensor.dtype, dims=tensor.shape.numpy())
        data = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
        assert len(data) == tensor.nbytes, name  # numbers of four bits are packed
        before = proto.SerializeToString(deterministic=True)
        before += _head(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, len(data))
        size = len(before) + len(data)
        weights += [_head(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, size) + before, data]
    model.graph.initializers.clear()
    return b"".join(joined(ir.serde.serialize_model(model), weights))


def joined(
    model: onnx.ModelProto, weights: Iterable[bytes | memoryview]
) -> list[bytes | memoryview]:
    """Return ``model`` with ``weights`` as last fields of its graph, encoded, piece by piece."""
    graph = [model.graph.SerializeToString(deterministic=True), *weights]
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    head = _head(onnx.ModelProto.GRAPH_FIELD_NUMBER, sum(map(len, graph)))
    return [rest.SerializeToString(deterministic=True), head, *graph]


def split(content: bytes) -> tuple[onnx.ModelProto, list[memoryview]]:
    """Return the model that ``content`` encodes, without its weights, and these, as encoded there.

    Weights are nearly all of a file; to see or change its graph they need not be read.
    """
    rest: list[memoryview] = []
    graph: list[memoryview] = []
    weights: list[memoryview] = []
    for field, whole, inner in _fields(memoryview(content)):
        if field != onnx.ModelProto.GRAPH_FIELD_NUMBER:
            rest.append(whole)
            continue
        for part, encoded, _ in _fields(inner):
            kept = weights if part == onnx.GraphProto.INITIALIZER_FIELD_NUMBER else graph
            kept.append(encoded)
    model = onnx.ModelProto.FromString(b"".join(rest))
    model.graph.ParseFromString(b"".join(graph))
    return model, weights


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield number, encoding, and content of each field that protobuf has encoded.

    Those of models are numbers without a length, or have one before their content.
    """
    end = 0
    while end < len(message):
        start = end
        tag, place = _number(message, start)
        size, end = _number(message, place)
        assert tag & 7 in (0, _SIZED), f"field {tag >> 3}"
        if tag & 7 == _SIZED:
            place, end = end, end + size
        yield tag >> 3, message[start:end], message[place:end]


def _number(message: memoryview, place: int) -> tuple[int, int]:
    """Return the number that is encoded at ``place``, seven bits a byte, and where it ends."""
    found = shift = 0
    while message[place] > 127:
        found |= (message[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return found | message[place] << shift, place + 1


def _head(field: int, size: int) -> bytes:
    """Return what protobuf puts before a field of ``size`` bytes."""
    found = bytearray([field << 3 | _SIZED])
    while size > 127:
        found.append(size & 127 | 128)
        size >>= 7
    return bytes([*found, size])


def graph_facts(model: Path) -> dict[str, Any]:
    """Return opset, IR version, bytes and numbers of nodes of a model file, also by part.

    A part is a backbone, the reshape of features (``pool``), or what the fusion has below it.
    """
    content = model.read_bytes()
    found, _ = split(content)
    # Files of earlier versions do not say where nodes come from.
    places = (node.name.partition("/")[0] for node in found.graph.node if "/" in node.name)
    parts = Counter(re.sub(r"^(\w+(\.[^.]+(\.\d+)?)?).*", r"\1", place) for place in places)
    return {
        "opset": {entry.domain: entry.version for entry in found.opset_import}[""],
        "ir": found.ir_version,
        "bytes": len(content),
        "nodes": len(found.graph.node),
        **({"parts": dict(parts)} if parts else {}),
    }


def external_files(model: onnx.ModelProto) -> set[str]:
    """Return the names of the files in which a model keeps tensors."""
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _check_size(network: nn.Module) -> None:
    tensors = [*network.parameters(), *network.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _LARGEST:
        raise UserError(
            f"received a network of {size / 2**30:.1f} GiB, expected less than 2 GiB, the most that"
            " one model.onnx can hold: train again with smaller backbones"
        )


def _capture(network: nn.Module, inputs: Sequence[TensorSpec]) -> torch.export.ExportedProgram:
    example = tuple(
        torch.zeros((_TRACED_BATCH, *spec.shape[1:]), dtype=getattr(torch, spec.dtype))
        for spec in inputs
    )
    batch = torch.export.Dim(BATCH)
    try:
        # Captured here and not by torch.onnx: that would fall back to a capture which takes
        # sizes for constants where this one reports them.
        return torch.export.export(
            network, example, dynamic_shapes=(tuple({0: batch} for _ in inputs),), strict=False
        )
    except Exception as error:  # torch.export has no base class for its errors
        if _FIXED.search(str(error)):
            raise ExportError(
                "the network computes for one batch size only: part of a backbone takes the size"
                f" of the batch axis for a constant: {first_line(error)}"
            ) from error
        raise ExportError(
            f"torch.export cannot capture the network: {type(error).__name__}: {first_line(error)}"
        ) from error


def _translate(captured: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    try:
        program = torch.onnx.export(captured, dynamo=True, opset_version=OPSET, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(_reason(error)) from error
    assert program is not None
    return program


def _reason(error: BaseException) -> str:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        found = _OPERATOR.search(str(link))
        if found:
            return (
                f"the operator {found[1]} cannot be exported to ONNX: replace it in the backbone"
                " that uses it"
            )
    return f"torch.onnx cannot translate the network: {first_line(chain[-1])}"


def _clean(
    model: ir.Model,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
) -> None:
    """Give inputs and outputs their names, and drop what tells of the exporting machine."""
    graph = model.graph
    ends = {
        **_named(graph.inputs, inputs),
        **_named(graph.outputs, outputs),
    }
    public = {spec.name for spec in ends.values()}
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    produced = [value for node in nodes for value in node.outputs]
    # Nodes carry stack traces with paths, values the shapes with names drawn by torch.
    for value in (*graph.initializers.values(), *produced):
        while value not in ends and value.name in public:
            value.name = f"{value.name}_"
    for value in produced:
        if value not in ends:
            value.shape = value.type = None
    for value, spec in ends.items():
        value.name, value.shape = spec.name, ir.Shape([BATCH, *spec.shape[1:]])
    alike: Counter[str] = Counter()
    for node in nodes:
        name = f"{_place(node)}/{node.op_type}"
        node.name = f"{name}_{alike[name]}" if alike[name] else name
        alike[name] += 1
    for part in (*ends, *graph.initializers.values(), *produced, *nodes, graph, model):
        part.metadata_props.clear()
        part.doc_string = None
    graph.name = "bmnas"
    model.metadata_props.update(metadata)
    model.producer_name, model.producer_version = "bmnas", metadata.get("bmnas.version", "")


def _place(node: ir.Node) -> str:
    """Return the module that a node comes from, such as ``backbones.left.stages.0``."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    # The last one is torch's own name for what it computes.
    modules = re.findall(r"'network\.([^']+)'", scopes)
    return modules[-1] if modules else _WHOLE


def _named(values: Sequence[Any], specs: Sequence[TensorSpec]) -> dict[Any, TensorSpec]:
    """Return what each value is; ExportError unless the first axis is free and the others fit."""
    if len(values) != len(specs):
        raise ExportError(
            f"the graph has {len(values)} tensors where {len(specs)} are expected:"
            f" {', '.join(spec.name for spec in specs)}"
        )
    for value, spec in zip(values, specs, strict=True):
        shape = tuple(axis if isinstance(axis, int) else -1 for axis in value.shape)
        dtype = value.dtype.numpy().name
        if (shape, dtype) != (spec.shape, spec.dtype):
            raise ExportError(
                f"{spec.name}: the graph has {dtype} {list(shape)}, expected {spec.dtype}"
                f" {list(spec.shape)}, where -1 is any length"
            )
    return dict(zip(values, specs, strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, advice and warnings about itself off the terminal.

    Errors are exceptions and pass.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for logger, level in zip(loggers, levels, strict=True):
            stack.callback(logger.setLevel, level)
            logger.setLevel(logging.ERROR)
        yield
