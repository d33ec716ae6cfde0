"""The parameters of requests: each is honoured or refused, and none is ignored.

The names are those of the Open Inference Protocol's extensions, which ``tritonclient`` sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bmnas_serve.checks import Check, boolean, table, wrong
from bmnas_serve.errors import FormatError


def _count(value: Any, place: str) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise wrong(place, value, "an integer from 0 to 2^63 - 1")
    return value


def _refused(why: str, *unset: Any) -> Check:
    """Return the check that accepts nothing but the values in ``unset``, which ask for nothing."""

    def check(value: Any, place: str) -> None:
        if not any(type(value) is type(found) and value == found for found in unset):
            raise FormatError(f"{place}: {why}; leave it out")

    return check


_SHARED = dict.fromkeys(
    ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"),
    _refused("shared memory is not supported: tensors travel in the request"),
)
_SEQUENCE = "sequences are not supported: every request stands for itself"
_ASKED: Mapping[str, Check] = {
    "timeout": _count,
    "sequence_id": _refused(_SEQUENCE, 0, ""),
    "sequence_start": _refused(_SEQUENCE, False),
    "sequence_end": _refused(_SEQUENCE, False),
    "priority": _refused("priorities are not supported: requests run in their order", 0),
}
_CLASSES: Mapping[str, Check] = {"classification": _count, **_SHARED}


def _of(known: Mapping[str, Check]) -> Check:
    """Return the check of parameters, which may be left out."""
    return lambda value, place: {} if value is None else table(value, place, {}, known)


#: Of a request: ``timeout`` in microseconds, and whether outputs are bytes.
REQUEST = _of({"binary_data_output": boolean, **_ASKED})
#: Of an input: its size in bytes.
INPUT = _of({"binary_data_size": _count, **_SHARED})
#: Of an output: whether it is bytes, and how many classes are asked for.
OUTPUT = _of({"binary_data": boolean, **_CLASSES})
#: Over gRPC tensors are bytes always.
GRPC_REQUEST, GRPC_INPUT, GRPC_OUTPUT = _of(_ASKED), _of(_SHARED), _of(_CLASSES)
#: Of a request to load or unload a model.
LOAD = _of(
    {
        "unload_dependents": boolean,  # no model depends on another
        "config": _refused("a model's configuration is its bundle's"),
    }
)
