"""A task: labelled samples, two or more modalities, three parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import Array as Array
from bmnas.tasks.kinds import LabelScale, task_kind
from bmnas.tasks.rows import Data

Part = Literal["train", "validation", "test"]
ModalityType = Literal[
    "image", "clip", "waveform", "sequence", "vector", "text", "tokens", "regions"
]

PARTS: tuple[Part, ...] = get_args(Part)
MODALITY_TYPES: tuple[ModalityType, ...] = get_args(ModalityType)

#: Axes of one row of each type, the sample axis left out.
ROW_AXES: dict[ModalityType, str] = {
    "image": "(H, W) or (H, W, 3)",
    "clip": "(T, H, W) or (T, H, W, 3)",
    "waveform": "(T)",
    "sequence": "(T, D)",
    "vector": "(D)",
    "text": "() of strings",
    "tokens": "(T) of integers",
    "regions": "(N, D + 4), the last four the corners x1, y1, x2, y2 of a box in pixels",
}


@dataclass(frozen=True)
class Modality:
    """One modality of a task: an array of rows, and which row each sample uses.

    ``data`` has shape (rows, *axes), see ``ROW_AXES``: uint8 or float for images and clips,
    float or int16 for waveforms, numbers for sequences and vectors, strings for text. It is an
    array, or ``Rows`` that are read when they are asked for.
    ``index`` (samples,) names each sample's row, for media that several samples share;
    without it sample i uses row i. ``backbone`` is a registered name, ``"hf:<folder>"``,
    ``"module:Class"`` or a torch module; None takes the default of the type. ``features`` are
    the module paths to tap in a user's own module, ``weights`` a file with its weights.
    ``length`` is how many tokens of a text are read; None takes what nearly all train texts need.
    ``source`` says how rows were made of a table, see ``bmnas.tasks.sources``. Where samples may
    lack the modality, ``absent`` (rows,) says which rows stand for that; what they hold does not
    count.
    """

    name: str
    type: ModalityType
    data: Data
    index: Array | None = None
    backbone: Any = None
    weights: Path | None = None
    features: tuple[str, ...] = ()
    sample_rate: int | None = None
    length: int | None = None
    source: Mapping[str, Any] | None = None
    absent: Array | None = None

    def rows_of(self, samples: Array) -> Array:
        """Return the row number of each of ``samples`` (n,) as int64 (n,)."""
        picked = samples if self.index is None else self.index[samples]
        return np.asarray(picked, dtype=np.int64)

    def lacking(self, samples: Array) -> Array:
        """Return which of ``samples`` (n,) lack the modality, (n,) bool."""
        if self.absent is None:
            return np.zeros(len(samples), np.bool_)
        return np.asarray(self.absent[self.rows_of(samples)])


@dataclass(frozen=True)
class Task:
    """Labelled samples of two or more modalities, split into train, validation and test.

    ``kind`` is the name of one of ``bmnas.tasks.kinds.TASK_KINDS``. ``labels`` is (samples,)
    integers in [0, K) for ``multiclass``, a 0/1 matrix (samples, K) for ``multilabel`` and numbers
    (samples, K) for ``regression``, whose names are ``class_names``;
    ``part`` (samples,) is 0, 1 or 2, see ``PARTS``. ``preset`` names the configuration that suits
    the task. ``source`` is what ``load_task`` was given, so that a later command finds the same
    data. ``extras`` are further arrays (samples, *shape) by name, such as boxes, for networks that
    read tokens. ``names`` are those of the samples in their data set, where they have some, and
    ``left_out`` those of samples that are not loaded because ``left_out.txt`` names them, or why
    samples of a table are left out. ``remarks`` is what was seen when the task was loaded and is to
    be told. ``class_weights`` says what classes count in the loss: ``balanced``, all alike however
    rare they are, or a number by name, 1 where there is none.
    """

    name: str
    kind: str
    modalities: tuple[Modality, ...]
    labels: Array
    part: Array
    class_names: tuple[str, ...]
    preset: str = "default"
    licence: str = "not stated"
    source: dict[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Array] = field(default_factory=dict)
    types: Array | None = None
    names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for a sample."""
        return task_kind(self.kind).outputs(self.classes)

    @property
    def scale(self) -> LabelScale | None:
        """Mean and standard deviation of the labels of train, where these are numbers."""
        return task_kind(self.kind).scale(self.labels[self.samples("train")])

    @property
    def loss_weights(self) -> tuple[float, ...] | None:
        """What each class counts in the loss (K,), None where all count alike.

        Of ``multiclass`` a train sample weighs 1 in the mean, so that a learning rate stays right.
        Of ``multilabel`` it is what having the label counts, not having it being 1.
        """
        wanted = self.class_weights
        if wanted is None:
            return None
        train = self.labels[self.samples("train")]
        belonging = task_kind(self.kind).belonging(train, self.classes)
        assert belonging is not None
        # A class that train lacks is told by check_task.
        having = belonging.sum(0).clip(1)
        if self.kind == "multilabel":
            weights = (len(train) - having).clip(1) / having
        else:
            weights = len(train) / (self.classes * having)
        if wanted != "balanced":
            weights = np.array([wanted.get(name, 1.0) for name in self.class_names])
        if self.kind != "multilabel":
            weights = weights * having.sum() / (weights * having).sum()
        return tuple(weights.tolist())

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

    def having(self, modality: Modality, *parts: Part) -> Array:
        """Return the samples (n,) of the given parts that do not lack ``modality``."""
        samples = self.samples(*parts)
        return samples[~modality.lacking(samples)]


def draw_parts(labels: Array, fractions: tuple[float, float, float], seed: int) -> Array:
    """Draw the part of each sample so that every class has the given fractions.

    ``labels`` (samples,) may be of any kind that sorts; the result is (samples,) uint8, see
    ``PARTS``. Each class is shuffled on its own and cut at the rounded fractions; at least one
    sample of every class goes to train. The generator is the frozen ``RandomState``, so a seed
    means the same split in every version of NumPy.
    """
    generator = np.random.RandomState(seed)
    part = np.empty(len(labels), dtype=np.uint8)
    # By number: NaN, which is a class here, equals nothing.
    _, of = np.unique(labels, return_inverse=True)
    for number in range(of.max(initial=-1) + 1):
        members = generator.permutation(np.flatnonzero(of == number))
        train = max(round(len(members) * fractions[0]), 1)
        validation = max(round(len(members) * (fractions[0] + fractions[1])), train)
        part[members] = np.searchsorted((train, validation), np.arange(len(members)), side="right")
    return part


def draw_groups(
    labels: Array, groups: Array, fractions: tuple[float, float, float], seed: int
) -> Array:
    """Draw the part of each sample so that all samples of a group are in one part.

    ``groups`` (samples,) may be of any kind that sorts. Groups are taken from the largest to the
    smallest, equally large ones in random order, and each goes to the part where the counts of
    classes then are nearest to the ``fractions`` of each class. Every part gets a group, if there
    are three. Returns (samples,) uint8, see ``PARTS``.
    """
    _, class_of = np.unique(labels, return_inverse=True)
    _, group_of = np.unique(groups, return_inverse=True)
    counts = np.zeros((group_of.max() + 1, class_of.max() + 1))
    np.add.at(counts, (group_of, class_of), 1)
    wanted = np.outer(fractions, counts.sum(0))
    order = np.random.RandomState(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    held = np.zeros_like(wanted)
    part = np.zeros(len(counts), np.uint8)
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        # What is still lacking, in shares of what is wanted, before and after.
        before = ((wanted - held) ** 2 / wanted.clip(1)).sum(1)
        after = ((wanted - held - counts[group]) ** 2 / wanted.clip(1)).sum(1)
        gain = after - before
        empty = (held.sum(1) == 0) & (wanted.sum(1) > 0)
        if empty.sum() >= left:
            gain[~empty] = np.inf
        part[group] = gain.argmin()
        held[part[group]] += counts[group]
    return part[group_of]
