"""Bodies of the Open Inference Protocol v2 from and to numpy arrays: pure functions.

A request that does not fit the model must never reach the session: there it could spoil the
requests that are run together with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.checks import each, items, nonempty, nullable, table, text, wrong
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.errors import FormatError, shorten
from bmnas_serve.manifest import TensorSpec
from bmnas_serve.strict_json import parse_json

#: What to do instead of sending binary tensors; the clients of the protocol name it so.
JSON_ONLY = "only JSON tensors are accepted: set binary_data=False on inputs and outputs"


@dataclass(frozen=True)
class InferRequest:
    """A request: arrays by name in the model's order; ``outputs`` None asks for all of them."""

    id: str | None
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...] | None


def decode_request(
    body: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], max_batch: int
) -> InferRequest:
    """Read the body of an infer request to a model with these ``inputs`` and ``outputs``.

    The request-level parameter ``binary_data_output`` is a wish that clients express unasked;
    it is answered in JSON, as the protocol allows.
    Raises FormatError when the body is not of the protocol, when an input is missing, unknown or
    given twice, when a datatype or a shape differs from the model's, when the batch is larger than
    ``max_batch`` or not the same over the inputs, and for an output that the model has not.
    """
    try:
        data = parse_json(body)
    except ValueError as error:
        raise FormatError(f"the body is not JSON: {error}") from error
    optional = {"id": nullable(text), "parameters": _parameters, "outputs": nullable(each(_output))}
    request = table(data, "", {"inputs": each(_input)}, optional)
    given = _check_inputs(request["inputs"], inputs, max_batch)
    # An empty list asks for as much as none.
    wanted = request.get("outputs") or None
    _check_names("output", wanted or (), outputs)
    arrays = {spec.name: _array(given[spec.name], spec) for spec in inputs}
    return InferRequest(request.get("id"), arrays, wanted)


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
        "datatype": PROTOCOL[array.dtype.name],
        "shape": list(array.shape),
        "data": array.ravel().tolist(),
    }


def _input(item: Any, place: str) -> dict[str, Any]:
    required = {"name": nonempty, "shape": items, "datatype": text, "data": items}
    return table(item, place, required, {"parameters": _parameters})


def _output(item: Any, place: str) -> str:
    output = table(item, place, {"name": nonempty}, {"parameters": _parameters})
    return str(output["name"])


def _parameters(value: Any, place: str) -> None:
    """Refuse the parameters whose neglect would change the answer; others are let pass."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong(place, value, "a JSON object")
    if "binary_data_size" in value or value.get("binary_data"):
        raise FormatError(f"{place}: received binary data, {JSON_ONLY}")
    for unsupported in ("shared_memory_region", "classification"):
        if unsupported in value:
            raise FormatError(f"{place}: {unsupported!r} is not supported; leave it out")


def _check_inputs(
    tensors: Sequence[dict[str, Any]], inputs: Sequence[TensorSpec], max_batch: int
) -> dict[str, dict[str, Any]]:
    """Return the tensors by name when they fit the model, as far as their data is not looked at."""
    received = [tensor["name"] for tensor in tensors]
    given = dict(zip(received, tensors, strict=True))
    _check_names("input", received, inputs)
    missing = [spec.name for spec in inputs if spec.name not in given]
    if missing:
        needs = "but the model also needs" if received else "but the model needs"
        raise FormatError(f"inputs: received {_names(received)}, {needs} {_names(missing)}")
    for spec in inputs:
        _check_tensor(given[spec.name], spec)
    sizes = {s.name: given[s.name]["shape"][0] for s in inputs if s.shape[:1] == (-1,)}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{shorten(size)} in {shorten(name)}" for name, size in sizes.items())
        raise FormatError(f"inputs: the batch is {found}, expected one size for all")
    largest = max(sizes.values(), default=0)
    if largest > max_batch:
        raise FormatError(
            f"inputs: received a batch of {shorten(largest)}, expected at most {max_batch:,}: send"
            " several requests"
        )
    return given


def _check_names(role: str, received: Sequence[str], specs: Sequence[TensorSpec]) -> None:
    known = [spec.name for spec in specs]
    for name in received:
        if name not in known:
            expected = f"the model's {role}s {_names(known)}"
            raise wrong(f"{role}s", name, expected)
        if received.count(name) > 1:
            raise FormatError(f"{role}s: {shorten(name)} stands twice, expected once")


def _check_tensor(tensor: Mapping[str, Any], spec: TensorSpec) -> None:
    place, expected = f"input {shorten(spec.name)}", PROTOCOL[spec.dtype]
    if tensor["datatype"] != expected:
        raise wrong(f"{place}: datatype", tensor["datatype"], expected)
    shape = tensor["shape"]
    if len(shape) != len(spec.shape) or not all(map(_fits, shape, spec.shape)):
        raise FormatError(
            f"{place}: received the shape {shorten(shape)}, expected {list(spec.shape)}, where -1"
            " is any length from 1"
        )


def _fits(axis: Any, wanted: int) -> bool:
    return type(axis) is int and (axis >= 1 if wanted == -1 else axis == wanted)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(shorten, names)) or "none"


def _array(tensor: Mapping[str, Any], spec: TensorSpec) -> NDArray[Any]:
    """Return the data of a checked tensor; numpy alone would take null for NaN, true for 1."""
    shape, place = tuple(tensor["shape"]), f"input {shorten(spec.name)}: data"
    elements = _flatten(tensor["data"], shape, place)
    return _flat_array(elements, np.dtype(spec.dtype), place).reshape(shape)


def _flatten(elements: list[Any], shape: tuple[int, ...], place: str) -> list[Any]:
    """Return the elements of a list that is flat or nested like ``shape``."""
    if len(shape) > 1 and elements and isinstance(elements[0], list):
        return _flatten_nested(elements, shape, place)
    count = math.prod(shape)
    if len(elements) != count:
        raise FormatError(
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
                raise FormatError(
                    f"{place}: received {found} on axis {axis}, expected a list of {length:,}"
                    f" for the shape {list(shape)}"
                )
        rows = list(chain.from_iterable(rows))
    return rows


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _flat_array(elements: list[Any], dtype: np.dtype[Any], place: str) -> NDArray[Any]:
    if dtype.kind == "b":
        _check_types(elements, {bool}, place, "true or false")
        return np.array(elements, dtype)
    if dtype.kind in "iu":
        _check_types(elements, {int}, place, f"integers of {PROTOCOL[dtype.name]}")
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        for value in (min(elements), max(elements)):
            if not low <= value <= high:
                raise _out_of_range(place, value, dtype, f"{low} to {high}")
        return np.array(elements, dtype)
    _check_types(elements, {int, float}, place, f"numbers of {PROTOCOL[dtype.name]}")
    return _floats(elements, dtype, place)


def _floats(elements: list[Any], dtype: np.dtype[Any], place: str) -> NDArray[Any]:
    largest = float(np.finfo(dtype).max)
    try:
        with np.errstate(over="ignore"):
            array = np.array(elements, np.float64).astype(dtype)
    except OverflowError as error:  # an integer of hundreds of digits is a JSON number too
        value = max(elements, key=abs)
        raise _out_of_range(place, value, dtype, f"{-largest:g} to {largest:g}") from error
    finite = np.isfinite(array)
    if not finite.all():
        value = elements[int(np.argmin(finite))]
        raise _out_of_range(place, value, dtype, f"{-largest:g} to {largest:g}")
    return array


def _check_types(elements: list[Any], allowed: set[type], place: str, expected: str) -> None:
    if not set(map(type, elements)) <= allowed:
        position = next(i for i, value in enumerate(elements) if type(value) not in allowed)
        raise wrong(f"{place}: element {position}", elements[position], expected)


def _out_of_range(place: str, value: Any, dtype: np.dtype[Any], span: str) -> FormatError:
    return FormatError(
        f"{place}: received {shorten(value)}, out of range for {PROTOCOL[dtype.name]}: {span}"
    )
