"""The protocol's classification extension: the highest values of an output, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.manifest import Manifest

#: The outputs with one value for each of the class names, where their shape has as many.
_BY_CLASS = ("logits", "probabilities")


def class_labels(manifest: Manifest | None, output: str, number: int) -> Sequence[str]:
    """Return the labels of an output's ``number`` values a sample; empty where they have none."""
    if manifest is None or output not in _BY_CLASS or number != len(manifest.class_names):
        return ()
    return manifest.class_names


def classify(
    array: NDArray[Any], classes: int, manifest: Manifest | None, output: str
) -> tuple[list[str], list[int]]:
    """Return the ``classes`` highest values of each sample of an output, and their shape.

    Each reads ``value:place``, or ``value:place:label`` where the output has labels; as many as
    there are if there are fewer. ``array`` is (B, ...); the shape is [B, number].
    """
    rows = array.reshape(array.shape[0], -1) if array.ndim else array.reshape(1, 1)
    number = min(classes, rows.shape[1])
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :number]
    labels = class_labels(manifest, output, rows.shape[1])
    texts = [
        ":".join((str(row[place]), str(place), *labels[place : place + 1]))
        for row, places in zip(rows, order.tolist(), strict=True)
        for place in places
    ]
    return texts, [len(rows), number]
