"""gRPC messages of the Open Inference Protocol v2 from and to numpy arrays: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from bmnas_serve import parameters
from bmnas_serve.checks import wrong
from bmnas_serve.elements import Data
from bmnas_serve.errors import FormatError
from bmnas_serve.grpc_messages import ModelInferRequest, ModelInferResponse
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


def read_message(received: bytes) -> tuple[Any, list[bytes]]:
    """Return a ``ModelInferRequest`` and its ``raw_input_contents``, which it copies at each look.

    Raises protobuf's DecodeError when the bytes are none.
    """
    message = ModelInferRequest.FromString(received)
    return message, list(message.raw_input_contents)


def decode_message(
    message: Any,
    raw: Sequence[bytes],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch: int,
) -> InferRequest:
    """Read a request to a model with these ``inputs`` and ``outputs``, see ``read_message``.

    Raises FormatError when it is not of the protocol, and when it does not fit the model, see
    ``fit_inputs`` and ``fit_outputs``.
    """
    asked = parameters.GRPC_REQUEST(plain(message.parameters), "parameters")
    wanted = [_output(output, f"outputs[{i}]") for i, output in enumerate(message.outputs)]
    return InferRequest(
        message.id or None,
        fit_inputs(_given(message, raw), inputs, max_batch),
        fit_outputs(wanted, outputs, binary=True),
        asked.get("timeout", 0) / 1e6 or None,
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


def _given(message: Any, raw: Sequence[bytes]) -> list[GivenTensor]:
    for i, tensor in enumerate(message.inputs):
        parameters.GRPC_INPUT(plain(tensor.parameters), f"inputs[{i}].parameters")
    if raw and len(raw) != len(message.inputs):
        raise FormatError(
            f"raw_input_contents: received {len(raw):,}, expected one for each of the"
            f" {len(message.inputs):,} inputs"
        )
    given = []
    for i, tensor in enumerate(message.inputs):
        place = f"inputs[{i}]"
        if raw and tensor.HasField("contents"):
            raise FormatError(f"{place}: has contents and raw_input_contents, expected one of them")
        data: Data = raw[i] if raw else _elements(tensor, place)
        given.append(GivenTensor(tensor.name, tensor.datatype, list(tensor.shape), data))
    return given


def _elements(tensor: Any, place: str) -> Sequence[Any]:
    found = [field.name for field, _ in tensor.contents.ListFields()]
    expected = _CONTENTS.get(tensor.datatype)
    if expected is None:
        raise wrong(f"{place}.datatype", tensor.datatype, f"raw_input_contents, or {_TYPED}")
    if found not in ([], [expected]):
        received = ", ".join(found)
        raise FormatError(
            f"{place}.contents: received {received}, expected {expected} for {tensor.datatype}"
        )
    elements: Sequence[Any] = getattr(tensor.contents, expected)
    return elements


_TYPED = f"one of {', '.join(_CONTENTS)}"
