"""The parameters of requests: each is honoured or refused, and none is ignored.

The names are those of the Open Inference Protocol's extensions, which ``tritonclient`` sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bmnas_serve.checks import Check, table, wrong
from bmnas_serve.errors import FormatError


def of_request(value: Any, place: str) -> Mapping[str, Any]:
    """Return the parameters of a whole request: ``timeout`` in microseconds, and the rest."""
    return _read(value, place, _REQUEST)


def of_input(value: Any, place: str) -> Mapping[str, Any]:
    """Return the parameters of an input: ``binary_data_size`` in bytes."""
    return _read(value, place, _INPUT)


def of_output(value: Any, place: str) -> Mapping[str, Any]:
    """Return the parameters of an output: ``binary_data``, and the number of ``classification``."""
    return _read(value, place, _OUTPUT)


def of_load(value: Any, place: str) -> Mapping[str, Any]:
    """Accept what a request to load or unload a model may say."""
    return _read(value, place, _LOAD)


def _read(value: Any, place: str, known: Mapping[str, Check]) -> Mapping[str, Any]:
    return {} if value is None else table(value, place, {}, known)


def boolean(value: Any, place: str) -> bool:
    """Accept true or false."""
    if type(value) is not bool:
        raise wrong(place, value, "true or false")
    return value


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
_REQUEST: Mapping[str, Check] = {
    "binary_data_output": boolean,
    "timeout": _count,
    "sequence_id": _refused(_SEQUENCE, 0, ""),
    "sequence_start": _refused(_SEQUENCE, False),
    "sequence_end": _refused(_SEQUENCE, False),
    "priority": _refused("priorities are not supported: requests run in their order", 0),
}
_INPUT: Mapping[str, Check] = {"binary_data_size": _count, **_SHARED}
_OUTPUT: Mapping[str, Check] = {"binary_data": boolean, "classification": _count, **_SHARED}
_LOAD: Mapping[str, Check] = {
    "unload_dependents": boolean,  # no model depends on another
    "config": _refused("a model's configuration is its bundle's"),
}
