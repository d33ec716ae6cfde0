"""Bodies of the Open Inference Protocol v2 from and to numpy arrays: JSON tensors, pure functions.

A decoded request is well formed in itself; whether it fits the model is ``validate``'s question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.datatypes import BY_NUMPY, BY_PROTOCOL, Datatype
from bmnas_serve.errors import RequestError, shorten
from bmnas_serve.strict_json import parse_json

MAX_RANK = 16

#: What to do instead of sending binary tensors; the clients of the protocol name it so.
JSON_ONLY = "only JSON tensors are accepted: set binary_data=False on inputs and outputs"


@dataclass(frozen=True)
class InputTensor:
    """One input of a request: its name, the datatype that it declares, its array."""

    name: str
    datatype: Datatype
    array: NDArray[Any]


@dataclass(frozen=True)
class InferRequest:
    """A request for inference; ``outputs`` None asks for all of them."""

    id: str | None
    inputs: tuple[InputTensor, ...]
    outputs: tuple[str, ...] | None


def decode_request(body: bytes, known: Sequence[str] | None = None) -> InferRequest:
    """Read the body of an infer request; inputs are ``known``, where that is given, by name.

    A name that is not is told before anything is said of the data.
    The request-level parameter ``binary_data_output`` is a wish that clients express unasked;
    it is answered in JSON, as the protocol allows.
    Raises RequestError (400) that names the place, what was received and what was expected.
    """
    try:
        data = parse_json(body)
    except ValueError as error:
        raise _bad(f"the body is not JSON: {error}") from error
    request = _object(data, "the body", ("inputs",), ("id", "parameters", "outputs"))
    _parameters(request, "the body")
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise _wrong("id", identity, "a string")
    inputs = _list(request["inputs"], "inputs")
    if known is not None:
        check_known("input", _given_names(inputs), known)
    # An empty list asks for as much as none.
    outputs = _list(request.get("outputs") or [], "outputs")
    return InferRequest(
        id=identity,
        inputs=tuple(_input(item, f"inputs[{i}]") for i, item in enumerate(inputs)),
        outputs=_outputs(outputs) or None,
    )


def check_known(role: str, received: Sequence[str], known: Sequence[str]) -> None:
    """Raise RequestError (400) for a name that the model has not."""
    for name in received:
        if name not in known:
            names = ", ".join(map(shorten, known))
            raise _bad(f"{role}s: received {shorten(name)}, expected the model's {role}s {names}")


def encode_response(
    model: str, version: str, request: InferRequest, outputs: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """Return the JSON-ready body that answers ``request``; arrays must be finite.

    The outputs stand in the order in which they were asked for, their data flat and row-major.
    """
    names = outputs.keys() if request.outputs is None else request.outputs
    identity = {} if request.id is None else {"id": request.id}
    return {
        "model_name": model,
        "model_version": version,
        **identity,
        "outputs": [encode_tensor(name, outputs[name]) for name in names],
    }


def encode_tensor(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Return an array as the protocol's JSON tensor; float32 and float16 survive exactly."""
    return {
        "name": name,
        "datatype": BY_NUMPY[array.dtype.name].protocol,
        "shape": list(array.shape),
        "data": array.ravel().tolist(),
    }


def _input(item: Any, place: str) -> InputTensor:
    _parameters(item, place)
    tensor = _object(item, place, ("name", "shape", "datatype", "data"), ("parameters",))
    name = _name(tensor["name"], place)
    place = f"input {shorten(name)}"
    shape = _shape(tensor["shape"], f"{place}: shape")
    declared = tensor["datatype"]
    if not isinstance(declared, str) or declared not in BY_PROTOCOL:
        raise _wrong(f"{place}: datatype", declared, f"one of {', '.join(BY_PROTOCOL)}")
    datatype = BY_PROTOCOL[declared]
    elements = _flatten(tensor["data"], shape, f"{place}: data")
    return InputTensor(name, datatype, _array(elements, datatype, f"{place}: data").reshape(shape))


def _given_names(items: list[Any]) -> list[str]:
    """Return the names in a list of tensors, those left out that are no names at all."""
    names = [item.get("name") for item in items if isinstance(item, dict)]
    return [name for name in names if isinstance(name, str) and name]


def _outputs(items: list[Any]) -> tuple[str, ...]:
    names = []
    for i, item in enumerate(items):
        _parameters(item, f"outputs[{i}]")
        output = _object(item, f"outputs[{i}]", ("name",), ("parameters",))
        names.append(_name(output["name"], f"outputs[{i}]"))
    return tuple(names)


def _flatten(data: Any, shape: tuple[int, ...], place: str) -> list[Any]:
    """Return the elements of ``data``, a list that is flat or nested like ``shape``."""
    elements = _list(data, place)
    if len(shape) > 1 and elements and isinstance(elements[0], list):
        return _flatten_nested(elements, shape, place)
    count = math.prod(shape)
    if len(elements) != count:
        raise _bad(
            f"{place}: received {_count(len(elements), 'element')}, expected {count:,} for the"
            f" shape {list(shape)}"
        )
    return elements


def _flatten_nested(data: list[Any], shape: tuple[int, ...], place: str) -> list[Any]:
    rows: list[Any] = [data]
    for axis, length in enumerate(shape):
        for row in rows:
            if not isinstance(row, list) or len(row) != length:
                found = _count(len(row), "item") if isinstance(row, list) else shorten(row)
                raise _bad(
                    f"{place}: received {found} on axis {axis}, expected a list of {length:,}"
                    f" for the shape {list(shape)}"
                )
        rows = list(chain.from_iterable(rows))
    return rows


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _array(elements: list[Any], datatype: Datatype, place: str) -> NDArray[Any]:
    """Return the elements as a flat array; numpy alone would take null for NaN, true for 1."""
    dtype = datatype.dtype
    if dtype.kind == "b":
        _check_types(elements, {bool}, place, "true or false")
        return np.array(elements, dtype)
    if dtype.kind in "iu":
        _check_types(elements, {int}, place, f"integers of {datatype.protocol}")
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        for value in (min(elements), max(elements)):
            if not low <= value <= high:
                raise _out_of_range(place, value, datatype, f"{low} to {high}")
        return np.array(elements, dtype)
    _check_types(elements, {int, float}, place, f"numbers of {datatype.protocol}")
    return _floats(elements, datatype, place)


def _floats(elements: list[Any], datatype: Datatype, place: str) -> NDArray[Any]:
    largest = float(np.finfo(datatype.dtype).max)
    try:
        with np.errstate(over="ignore"):
            array = np.array(elements, np.float64).astype(datatype.dtype)
    except OverflowError as error:  # an integer of hundreds of digits is a JSON number too
        value = max(elements, key=abs)
        raise _out_of_range(place, value, datatype, f"{-largest:g} to {largest:g}") from error
    finite = np.isfinite(array)
    if not finite.all():
        value = elements[int(np.argmin(finite))]
        raise _out_of_range(place, value, datatype, f"{-largest:g} to {largest:g}")
    return array


def _check_types(elements: list[Any], allowed: set[type], place: str, expected: str) -> None:
    if not set(map(type, elements)) <= allowed:
        position = next(i for i, value in enumerate(elements) if type(value) not in allowed)
        raise _wrong(f"{place}: element {position}", elements[position], expected)


def _shape(value: Any, place: str) -> tuple[int, ...]:
    axes = _list(value, place)
    if len(axes) > MAX_RANK:
        raise _bad(f"{place}: received {len(axes)} axes, expected at most {MAX_RANK}")
    for axis in axes:
        if type(axis) is not int or axis < 1:
            raise _wrong(place, axes, "integers from 1")
    return tuple(axes)


def _name(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(f"{place}.name", value, "a string that is not empty")
    return value


def _parameters(item: Any, place: str) -> None:
    """Refuse the parameters whose neglect would change the answer; others are let pass."""
    if not isinstance(item, dict):
        raise _wrong(place, item, "a JSON object")
    parameters = item.get("parameters")
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise _wrong(f"{place}: parameters", parameters, "a JSON object")
    if "binary_data_size" in parameters or parameters.get("binary_data"):
        raise _bad(f"{place}: received binary data, {JSON_ONLY}")
    for name in ("shared_memory_region", "classification"):
        if name in parameters:
            raise _bad(f"{place}: the parameter {name!r} is not supported; leave it out")


def _object(
    data: Any, place: str, required: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _wrong(place, data, "a JSON object")
    missing = [key for key in required if key not in data]
    if missing:
        raise _bad(f"{place}: lacks {', '.join(map(repr, missing))}")
    unknown = [key for key in data if key not in required and key not in optional]
    if unknown:
        known = ", ".join((*required, *optional))
        raise _bad(f"{place}: has the unknown field {shorten(unknown[0])}, expected {known}")
    return data


def _list(data: Any, place: str) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(place, data, "a list")
    return data


def _out_of_range(place: str, value: Any, datatype: Datatype, span: str) -> RequestError:
    return _bad(f"{place}: received {shorten(value)}, out of range for {datatype.protocol}: {span}")


def _wrong(place: str, received: Any, expected: str) -> RequestError:
    return _bad(f"{place}: received {shorten(received)}, expected {expected}")


def _bad(message: str) -> RequestError:
    return RequestError(400, message)
