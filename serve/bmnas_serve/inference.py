"""What a request to infer asks for, whichever way it came, and whether it fits the model.

A request that does not fit must never reach the session: there it could spoil the requests that
are run together with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from numpy.typing import NDArray

from bmnas_serve.checks import wrong
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.elements import Data, to_array
from bmnas_serve.errors import FormatError, shorten
from bmnas_serve.manifest import InputSpec, TensorSpec


@dataclass(frozen=True)
class OutputRequest:
    """An output that is asked for: as bytes or as JSON, and as it is or its first ``classes``.

    ``classes`` > 0 asks for so many of the highest values, with place and label.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request: arrays by name in the model's order, and the outputs in the order of the answer.

    ``timeout`` is in seconds, None for no limit.
    """

    id: str | None
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[OutputRequest, ...]
    timeout: float | None = None


class GivenTensor(NamedTuple):
    """An input as it was received, unchecked."""

    name: str
    datatype: str
    shape: Sequence[Any]
    data: Data


def fit_inputs(
    tensors: Sequence[GivenTensor], inputs: Sequence[TensorSpec], max_batch: int
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a model's ``inputs``, by name and in its order.

    Raises FormatError when an input is missing, unknown or given twice, when a datatype or a shape
    differs from the model's, when the batch is larger than ``max_batch`` or not the same over the
    inputs, and for elements that the datatype cannot hold. In place of an optional input that is
    left out stands the row that the manifest has for it.
    """
    received = [tensor.name for tensor in tensors]
    given = dict(zip(received, tensors, strict=True))
    _check_names("input", received, inputs)
    left_out = [spec for spec in inputs if spec.name not in given]
    missing = [spec.name for spec in left_out if not given or not _optional(spec)]
    if missing:
        needs = "but the model also needs" if received else "but the model needs"
        raise FormatError(f"inputs: received {_names(received)}, {needs} {_names(missing)}")
    told = [spec for spec in inputs if spec.name in given]
    for spec in told:
        _check_tensor(given[spec.name], spec)
    sizes = {s.name: given[s.name].shape[0] for s in told if s.shape[:1] == (-1,)}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{shorten(size)} in {shorten(name)}" for name, size in sizes.items())
        raise FormatError(f"inputs: the batch is {found}, expected one size for all")
    largest = max(sizes.values(), default=0)
    if largest > max_batch:
        raise FormatError(
            f"inputs: received a batch of {shorten(largest)}, expected at most {max_batch:,}: send"
            " several requests"
        )
    arrays = {
        spec.name: to_array(
            given[spec.name].data,
            given[spec.name].shape,
            spec.dtype,
            f"{_place(spec.name)}: data",
        )
        for spec in told
    }
    arrays |= {s.name: s.stand_ins(largest) for s in left_out if isinstance(s, InputSpec)}
    return {spec.name: arrays[spec.name] for spec in inputs}


def fit_outputs(
    wanted: Sequence[OutputRequest], outputs: Sequence[TensorSpec], *, binary: bool
) -> tuple[OutputRequest, ...]:
    """Return the outputs to answer with: what is ``wanted``, or all of the model's if none is.

    ``binary`` says how those are sent that were not asked for by name. Raises FormatError for an
    output that the model has not, or that is wanted twice.
    """
    _check_names("output", [output.name for output in wanted], outputs)
    return tuple(wanted) or tuple(OutputRequest(spec.name, binary) for spec in outputs)


@lru_cache
def _place(name: str) -> str:
    return f"input {shorten(name)}"


def _check_names(role: str, received: Sequence[str], specs: Sequence[TensorSpec]) -> None:
    known = [spec.name for spec in specs]
    for name in received:
        if name not in known:
            raise wrong(f"{role}s", name, f"the model's {role}s {_names(known)}")
        if received.count(name) > 1:
            raise FormatError(f"{role}s: {shorten(name)} stands twice, expected once")


def _check_tensor(tensor: GivenTensor, spec: TensorSpec) -> None:
    place, expected = _place(spec.name), PROTOCOL[spec.dtype]
    if tensor.datatype != expected:
        raise wrong(f"{place}: datatype", tensor.datatype, expected)
    shape = tensor.shape
    if len(shape) != len(spec.shape) or not all(map(_fits, shape, spec.shape)):
        raise FormatError(
            f"{place}: received the shape {shorten(shape)}, expected {list(spec.shape)}, where -1"
            " is any length from 1"
        )


#: What an axis must stay below, as in numpy. Python refuses to write numbers of 4,300 digits.
_LARGEST = 2**63


def _fits(axis: Any, wanted: int) -> bool:
    return type(axis) is int and (1 <= axis < _LARGEST if wanted == -1 else axis == wanted)


def _optional(spec: TensorSpec) -> bool:
    return isinstance(spec, InputSpec) and spec.optional


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(shorten, names)) or "none"
