"""HTTP bodies of the Open Inference Protocol v2 from and to numpy arrays: pure functions.

A body is JSON, or JSON with the tensors' bytes after it (the binary tensor data extension).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve import parameters
from bmnas_serve.checks import each, items, nonempty, nullable, table, text
from bmnas_serve.datatypes import protocol_name
from bmnas_serve.elements import Data
from bmnas_serve.errors import FormatError, shorten
from bmnas_serve.inference import (
    GivenTensor,
    InferRequest,
    OutputRequest,
    fit_inputs,
    fit_outputs,
)
from bmnas_serve.manifest import Manifest, TensorSpec
from bmnas_serve.outputs import answer
from bmnas_serve.strict_json import parse_json


def decode_request(
    body: bytes | bytearray,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch: int,
    json_size: int | None = None,
) -> InferRequest:
    """Read the body of an infer request to a model with these ``inputs`` and ``outputs``.

    ``json_size`` is the length of the JSON in bytes where tensors follow it, else None.
    Raises FormatError when the body is not of the protocol, and when it does not fit the model,
    see ``fit_inputs`` and ``fit_outputs``.
    """
    if json_size is not None and json_size > len(body):
        raise FormatError(
            f"the body: received {len(body):,} bytes, expected at least the {json_size:,} of the"
            " header Inference-Header-Content-Length"
        )
    if json_size is None:
        request = _read(body)
    elif json_size > _SHORT:
        request = _read(body[:json_size])
    else:
        request = _read_short(bytes(body[:json_size]))
    asked = request.get("parameters") or {}
    binary = asked.get("binary_data_output", False)
    wanted = [
        OutputRequest(name, about.get("binary_data", binary), about.get("classification", 0))
        for name, about in request.get("outputs") or ()
    ]
    tensors = _given(
        request["inputs"], memoryview(body)[len(body) if json_size is None else json_size :]
    )
    return InferRequest(
        request.get("id"),
        fit_inputs(tensors, inputs, max_batch),
        fit_outputs(wanted, outputs, binary=binary),
        asked.get("timeout", 0) / 1e6 or None,
    )


def _read(content: bytes | bytearray) -> Mapping[str, Any]:
    """Return the members of a request in JSON, checked as far as no model is needed."""
    try:
        data = parse_json(content, arrays="data")
    except ValueError as error:
        raise FormatError(f"the body is not JSON: {error}") from error
    return table(data, "", {"inputs": each(_input)}, _OPTIONAL)


#: A client sends the same JSON before the bytes of each request. Nothing changes what was read.
_SHORT = 1024
_read_short = lru_cache(maxsize=256)(_read)


def encode_response(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, NDArray[Any]],
    manifest: Manifest | None = None,
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the answer to ``request``: JSON-ready data, and the tensors' bytes to follow it.

    What goes out as JSON must be finite; it is flat and row-major. ``manifest`` holds the labels
    of the classes that are asked for.
    """
    tensors, binary = [], []
    for asked in request.outputs:
        tensor = answer(asked, outputs[asked.name], manifest)
        item: dict[str, Any] = {
            "name": asked.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if asked.binary:
            data = tensor.to_bytes()
            item["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            item["data"] = tensor.to_list()
        tensors.append(item)
    identity = {} if request.id is None else {"id": request.id}
    body = {"model_name": model, "model_version": version, **identity, "outputs": tensors}
    return body, binary


def encode_tensor(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Return an array as the protocol's JSON tensor; float32 and float16 survive exactly."""
    datatype, shape = protocol_name(array.dtype), list(array.shape)
    return {"name": name, "datatype": datatype, "shape": shape, "data": array.ravel().tolist()}


def _data(value: Any, place: str) -> Any:
    return value if isinstance(value, np.ndarray) else items(value, place)


def _input(item: Any, place: str) -> dict[str, Any]:
    required = {"name": nonempty, "shape": items, "datatype": text}
    tensor = table(item, place, required, {"data": _data, "parameters": parameters.INPUT})
    binary = "binary_data_size" in (tensor.get("parameters") or {})
    if binary and "data" in tensor:
        raise FormatError(f"{place}: has data and a binary_data_size, expected one of them")
    if not binary and "data" not in tensor:
        raise FormatError(f"{place}: lacks 'data', or a binary_data_size in its parameters")
    return tensor


def _output(item: Any, place: str) -> tuple[str, Mapping[str, Any]]:
    output = table(item, place, {"name": nonempty}, {"parameters": parameters.OUTPUT})
    return output["name"], output.get("parameters") or {}


_OPTIONAL = {
    "id": nullable(text),
    "parameters": parameters.REQUEST,
    "outputs": nullable(each(_output)),
}


def _given(tensors: Sequence[Mapping[str, Any]], binary: memoryview) -> list[GivenTensor]:
    """Return the tensors with their data; those in ``binary`` stand there in the same order."""
    given, start = [], 0
    for tensor in tensors:
        data: Data = tensor.get("data", ())
        if "data" not in tensor:
            size = tensor["parameters"]["binary_data_size"]
            data = binary[start : start + size]
            start += size
        given.append(GivenTensor(tensor["name"], tensor["datatype"], tensor["shape"], data))
    if start != len(binary):
        sizes = f"the tensors' binary_data_size add up to {shorten(start)} bytes"
        raise FormatError(
            f"the body: {sizes}, but {len(binary):,} follow the JSON; the header"
            " Inference-Header-Content-Length says where it ends"
        )
    return given
