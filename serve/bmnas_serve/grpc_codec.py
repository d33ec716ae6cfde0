"""gRPC messages of the Open Inference Protocol v2 from and to numpy arrays: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from numpy.typing import NDArray

from bmnas_serve import parameters
from bmnas_serve.checks import wrong
from bmnas_serve.elements import Data
from bmnas_serve.errors import FormatError
from bmnas_serve.grpc_messages import ModelInferRequest, ModelInferResponse
from bmnas_serve.grpc_wire import Nested, check_parts, split
from bmnas_serve.inference import (
    GivenTensor,
    InferRequest,
    OutputRequest,
    fit_inputs,
    fit_outputs,
)
from bmnas_serve.manifest import Manifest, TensorSpec
from bmnas_serve.outputs import answer

#: Where a tensor's elements are, if they are not bytes; FP16 is bytes always.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
#: Of a ModelInferRequest by number of field: the bytes of its tensors, the messages within it (its
#: parameters, inputs and outputs, and those within these), and the lists of integers.
_RAW = 7
_PARAMETERS: Nested = {2: {}}
_NESTED: Nested = {4: _PARAMETERS, 5: {4: _PARAMETERS, 5: {}}, 6: {2: _PARAMETERS}}
_PACKED = {(5, 3), *((5, 5, number) for number in range(1, 6))}


@dataclass(frozen=True)
class Head:
    """What a request says besides its ``raw_input_contents``; ``timeout`` is in seconds."""

    model: str
    version: str
    id: str | None
    timeout: float | None
    inputs: tuple[_Input, ...]
    outputs: tuple[OutputRequest, ...]


class _Input(NamedTuple):
    name: str
    datatype: str
    shape: list[int]
    contents: Any


def read_message(received: bytes) -> tuple[Head, list[memoryview]]:
    """Return what a ``ModelInferRequest`` says, and its ``raw_input_contents``.

    Raises protobuf's DecodeError when the bytes are no such message, FormatError when it has too
    many parts, and for parameters that are not supported.
    """
    head, raw = split(received, _RAW)
    return (_read_short if len(head) <= _SHORT else _read)(head), raw


def _read(head: bytes) -> Head:
    check_parts(head, _NESTED, _PACKED)
    message = ModelInferRequest.FromString(head)
    asked = parameters.GRPC_REQUEST(plain(message.parameters), "parameters")
    for i, tensor in enumerate(message.inputs):
        parameters.GRPC_INPUT(plain(tensor.parameters), f"inputs[{i}].parameters")
    return Head(
        message.model_name,
        message.model_version,
        message.id or None,
        asked.get("timeout", 0) / 1e6 or None,
        tuple(map(_input, message.inputs)),
        tuple(_output(output, f"outputs[{i}]") for i, output in enumerate(message.outputs)),
    )


def _input(tensor: Any) -> _Input:
    contents = tensor.contents if tensor.HasField("contents") else None
    return _Input(tensor.name, tensor.datatype, list(tensor.shape), contents)


#: A client sends the same before the bytes of each request. Nothing changes what was read.
_SHORT = 1024
_read_short = lru_cache(maxsize=256)(_read)


def decode_message(
    head: Head,
    raw: Sequence[memoryview],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch: int,
) -> InferRequest:
    """Return the request to a model with these ``inputs`` and ``outputs``, see ``read_message``.

    Raises FormatError when it is not of the protocol, and when it does not fit the model, see
    ``fit_inputs`` and ``fit_outputs``.
    """
    return InferRequest(
        head.id,
        fit_inputs(_given(head.inputs, raw), inputs, max_batch),
        fit_outputs(head.outputs, outputs, binary=True),
        head.timeout,
    )


def encode_message(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, NDArray[Any]],
    manifest: Manifest | None = None,
) -> Any:
    """Return the ``ModelInferResponse`` that answers ``request``; see ``codec.encode_response``."""
    message = ModelInferResponse(model_name=model, model_version=version, id=request.id or "")
    for asked in request.outputs:
        tensor = answer(asked, outputs[asked.name], manifest)
        message.outputs.add(name=asked.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(tensor.to_bytes())
    return message


def plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a message as JSON would have them."""
    return {name: _value(parameter) for name, parameter in found.items()}


def _value(parameter: Any) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _output(output: Any, place: str) -> OutputRequest:
    about = parameters.GRPC_OUTPUT(plain(output.parameters), f"{place}.parameters")
    return OutputRequest(output.name, binary=True, classes=about.get("classification", 0))


def _given(inputs: Sequence[_Input], raw: Sequence[memoryview]) -> list[GivenTensor]:
    if raw and len(raw) != len(inputs):
        raise FormatError(
            f"raw_input_contents: received {len(raw):,}, expected one for each of the"
            f" {len(inputs):,} inputs"
        )
    given = []
    for i, (name, datatype, shape, contents) in enumerate(inputs):
        place = f"inputs[{i}]"
        if raw and contents is not None:
            raise FormatError(f"{place}: has contents and raw_input_contents, expected one of them")
        data: Data = raw[i] if raw else _elements(datatype, contents, place)
        given.append(GivenTensor(name, datatype, shape, data))
    return given


def _elements(datatype: str, contents: Any, place: str) -> Sequence[Any]:
    found = [] if contents is None else [field.name for field, _ in contents.ListFields()]
    expected = _CONTENTS.get(datatype)
    if expected is None:
        raise wrong(f"{place}.datatype", datatype, f"raw_input_contents, or {_TYPED}")
    if found not in ([], [expected]):
        received = ", ".join(found)
        raise FormatError(
            f"{place}.contents: received {received}, expected {expected} for {datatype}"
        )
    elements: Sequence[Any] = getattr(contents, expected) if found else ()
    return elements


_TYPED = f"one of {', '.join(_CONTENTS)}"
