"""Whether a decoded request fits the model, asked before anything runs.

A request that does not fit must never reach the session: there it could spoil the requests that
are run together with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from bmnas_serve.codec import InferRequest, InputTensor, check_known
from bmnas_serve.datatypes import BY_NUMPY
from bmnas_serve.errors import RequestError, shorten
from bmnas_serve.manifest import TensorSpec


def check_request(
    request: InferRequest,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch: int,
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a request by name, in the model's order.

    Raises RequestError (400) when an input is missing, unknown or given twice, when a datatype
    or a shape differs from the model's, when the batch is larger than ``max_batch`` or not the
    same over the inputs, and when an output is asked for that the model has not.
    """
    given = {tensor.name: tensor for tensor in request.inputs}
    received = [tensor.name for tensor in request.inputs]
    _check_names("input", received, [spec.name for spec in inputs])
    missing = [spec.name for spec in inputs if spec.name not in given]
    if missing:
        needs = "but the model also needs" if received else "but the model needs"
        raise _bad(f"inputs: received {_names(received)}, {needs} {_names(missing)}")
    for spec in inputs:
        _check_tensor(given[spec.name], spec)
    _check_batch([given[spec.name] for spec in inputs if spec.shape[:1] == (-1,)], max_batch)
    if request.outputs is not None:
        _check_names("output", request.outputs, [spec.name for spec in outputs])
    return {spec.name: given[spec.name].array for spec in inputs}


def _check_names(role: str, received: Sequence[str], known: Sequence[str]) -> None:
    check_known(role, received, known)
    for name in received:
        if received.count(name) > 1:
            raise _bad(f"{role}s: {shorten(name)} stands twice, expected once")


def _check_tensor(tensor: InputTensor, spec: TensorSpec) -> None:
    place = f"input {shorten(spec.name)}"
    expected = BY_NUMPY[spec.dtype].protocol
    if tensor.datatype.protocol != expected:
        raise _bad(f"{place}: received {tensor.datatype.protocol}, expected {expected}")
    shape = tensor.array.shape
    fits = len(shape) == len(spec.shape) and all(
        wanted in (-1, axis) for axis, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise _bad(
            f"{place}: received the shape {list(shape)}, expected {list(spec.shape)},"
            " where -1 is any length"
        )


def _check_batch(tensors: Sequence[InputTensor], max_batch: int) -> None:
    sizes = {tensor.name: tensor.array.shape[0] for tensor in tensors}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} in {shorten(name)}" for name, size in sizes.items())
        raise _bad(f"inputs: the batch is {found}, expected one size for all")
    largest = max(sizes.values(), default=0)
    if largest > max_batch:
        raise _bad(
            f"inputs: received a batch of {largest:,}, expected at most {max_batch:,}: send"
            " several requests"
        )


def _names(names: Sequence[str]) -> str:
    return ", ".join(shorten(name) for name in names) or "none"


def _bad(message: str) -> RequestError:
    return RequestError(400, message)
