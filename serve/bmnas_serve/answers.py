"""What the outputs of a model say: labels, probabilities, numbers. Legend: n samples, K classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.manifest import Manifest


def labels(manifest: Manifest, probabilities: NDArray[Any]) -> list[list[str]]:
    """Return the labels of each row of ``probabilities`` (n, K): one, or those over the threshold.

    Only where the task's decision is ``argmax`` or ``threshold``.
    """
    names = np.array(manifest.class_names)
    if manifest.task.decision == "argmax":
        return [[str(names[row.argmax()])] for row in probabilities]
    # As training compares them.
    threshold = np.float32(manifest.threshold or 0)
    return [names[row > threshold].tolist() for row in probabilities]


def shown(number: Any) -> float:
    """Return a float32 as the number of fewest digits that is this float32."""
    return float(np.format_float_positional(np.float32(number), trim="-"))


def answer(manifest: Manifest, outputs: Mapping[str, NDArray[Any]], row: int) -> dict[str, Any]:
    """Return what one row of the outputs says, as JSON-ready plain data.

    ``labels`` and ``probabilities`` of each class; of labels that are numbers ``numbers`` by name,
    in the units of the labels; of another kind of task its ``outputs`` by name.
    """
    if manifest.scale is not None:
        return {"numbers": _by_class(manifest, outputs["prediction"][row])}
    if manifest.task.decision == "none":
        told = for_people(outputs).items()
        return {"outputs": {name: _nested(array[row]) for name, array in told}}
    probabilities = outputs["probabilities"][row]
    found = {
        "labels": labels(manifest, probabilities[None])[0],
        "probabilities": _by_class(manifest, probabilities),
    }
    return found if manifest.threshold is None else {**found, "threshold": manifest.threshold}


def for_people(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the outputs of another kind of task without logits that came to a probability.

    Of a picture's regions there may be hundreds.
    """
    known = "probability" in outputs
    return {name: array for name, array in outputs.items() if name != "logits" or not known}


def _by_class(manifest: Manifest, row: NDArray[Any]) -> dict[str, float]:
    return dict(zip(manifest.class_names, map(shown, row), strict=True))


def _nested(array: NDArray[Any]) -> Any:
    if array.dtype.kind != "f":
        return array.tolist()
    return [_nested(one) for one in array] if array.ndim else shown(array)


def difference(
    manifest: Manifest, outputs: Mapping[str, NDArray[Any]], row: int, other: int
) -> float:
    """Return how much less row ``other`` says of what row ``row`` says.

    Of one label: how far its probability falls. Of several, and of numbers in the deviations of the
    training labels, and of outputs of another kind: the largest change either way.
    """
    if manifest.scale is not None:
        values = outputs["prediction"] / np.array(manifest.scale["deviation"])
    elif manifest.task.decision == "none":
        values = np.concatenate([array.reshape(len(array), -1) for array in outputs.values()], 1)
    else:
        values = outputs["probabilities"]
        if manifest.task.decision == "argmax":
            label = values[row].argmax()
            return float(values[row, label] - values[other, label])
    return float(np.abs(values[row] - values[other]).max(initial=0))
