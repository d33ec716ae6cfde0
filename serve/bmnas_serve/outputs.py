"""The tensors of an answer: outputs as they are, or their classes (classification extension)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.datatypes import protocol_name
from bmnas_serve.elements import texts_to_bytes, to_bytes
from bmnas_serve.inference import OutputRequest
from bmnas_serve.manifest import Manifest

#: The outputs with one value for each of the class names, where their shape has as many.
_BY_CLASS = ("logits", "probabilities")

#: About what a number takes in a text, in bytes.
_NUMBER_BYTES = 8


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of an answer; ``values`` are an array, or the texts of a BYTES tensor."""

    datatype: str
    shape: list[int]
    values: NDArray[Any] | list[str]

    def to_list(self) -> list[Any]:
        """Return the elements for JSON: flat, row-major."""
        return self.values if isinstance(self.values, list) else self.values.ravel().tolist()

    def to_bytes(self) -> bytes:
        """Return the elements as the protocol's bytes."""
        if isinstance(self.values, list):
            return texts_to_bytes(self.values)
        return to_bytes(self.values)


def text_bytes(asked: Sequence[OutputRequest], outputs: Mapping[str, NDArray[Any]]) -> int:
    """Return about how many bytes of text it is to write what was ``asked`` for of ``outputs``.

    It is what is written as JSON, or sorted for its classes.
    """
    return sum(
        _NUMBER_BYTES * outputs[one.name].size for one in asked if one.classes or not one.binary
    )


def answer(asked: OutputRequest, array: NDArray[Any], manifest: Manifest | None) -> OutputTensor:
    """Return the tensor that was ``asked`` for of the output ``array``.

    Classes read ``value:place``, or ``value:place:label`` where ``manifest`` has labels for the
    output; the highest value stands first. There are as many as were asked for or as there are.
    """
    if not asked.classes:
        return OutputTensor(protocol_name(array.dtype), list(array.shape), array)
    rows = array.reshape(array.shape[0], -1) if array.ndim else array.reshape(1, 1)
    number = min(asked.classes, rows.shape[1])
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :number]
    labels = _labels(manifest, asked.name, rows.shape[1])
    texts = [
        ":".join((str(row[place]), str(place), *labels[place : place + 1]))
        for row, places in zip(rows, order.tolist(), strict=True)
        for place in places
    ]
    return OutputTensor("BYTES", [len(rows), number], texts)


def _labels(manifest: Manifest | None, output: str, number: int) -> Sequence[str]:
    if manifest is None or output not in _BY_CLASS or number != len(manifest.class_names):
        return ()
    return manifest.class_names
