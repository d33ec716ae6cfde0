"""A task: labelled samples, two or more modalities, three parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bmnas.machine.errors import UserError

Array = npt.NDArray[Any]
Part = Literal["train", "validation", "test"]
Kind = Literal["multiclass", "multilabel"]
ModalityType = Literal["image", "clip", "waveform", "sequence", "vector", "text", "tokens"]

PARTS: tuple[Part, ...] = get_args(Part)
KINDS: tuple[Kind, ...] = get_args(Kind)
MODALITY_TYPES: tuple[ModalityType, ...] = get_args(ModalityType)

#: The label of a sample whose class name is none of the task's; only the test part may have it
#: until it is checked.
UNKNOWN_LABEL = -1

#: Axes of one row of each type, the sample axis left out.
ROW_AXES: dict[ModalityType, str] = {
    "image": "(H, W) or (H, W, 3)",
    "clip": "(T, H, W) or (T, H, W, 3)",
    "waveform": "(T)",
    "sequence": "(T, D)",
    "vector": "(D)",
    "text": "() of strings",
    "tokens": "(T) of integers",
}


@dataclass(frozen=True)
class Modality:
    """One modality of a task: an array of rows, and which row each sample uses.

    ``data`` has shape (rows, *axes), see ``ROW_AXES``: uint8 or float for images and clips,
    float or int16 for waveforms, numbers for sequences and vectors, strings for text.
    ``index`` (samples,) names each sample's row, for media that several samples share;
    without it sample i uses row i. ``backbone`` is a registered name, ``"hf:<folder>"``,
    ``"module:Class"`` or a torch module; None takes the default of the type. ``features`` are
    the module paths to tap in a user's own module, ``weights`` a file with its weights.
    """

    name: str
    type: ModalityType
    data: Array
    index: Array | None = None
    backbone: Any = None
    weights: Path | None = None
    features: tuple[str, ...] = ()
    sample_rate: int | None = None

    def rows_of(self, samples: Array) -> Array:
        """Return the row number of each of ``samples`` (n,) as int64 (n,)."""
        picked = samples if self.index is None else self.index[samples]
        return np.asarray(picked, dtype=np.int64)


@dataclass(frozen=True)
class Task:
    """Labelled samples of two or more modalities, split into train, validation and test.

    ``labels`` is (samples,) integers in [0, K) for ``multiclass`` and a 0/1 matrix
    (samples, K) for ``multilabel``; ``part`` (samples,) is 0, 1 or 2, see ``PARTS``. ``preset``
    names the configuration that suits the task. ``source`` is what ``load_task`` was given,
    so that a later command finds the same data.
    """

    name: str
    kind: Kind
    modalities: tuple[Modality, ...]
    labels: Array
    part: Array
    class_names: tuple[str, ...]
    preset: str = "default"
    licence: str = "not stated"
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    def modality(self, name: str) -> Modality:
        """Return the modality called ``name``; raises UserError when there is none."""
        for modality in self.modalities:
            if modality.name == name:
                return modality
        names = ", ".join(m.name for m in self.modalities)
        raise UserError(f"task {self.name}: received modality {name!r}, expected one of {names}")

    def samples(self, *parts: Part) -> Array:
        """Return the sample numbers (n,) int64 of the given parts, part after part."""
        return np.concatenate([np.flatnonzero(self.part == PARTS.index(part)) for part in parts])


def class_names_or_numbers(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return ``names`` as a tuple, or ``"0"`` to ``str(classes - 1)`` when there are none."""
    return tuple(names) if names is not None else tuple(str(k) for k in range(classes))
