"""The kinds of task, as far as data goes: what labels look like and how they are read.

The other half of a kind, loss and score and decision, is its head in ``bmnas.training.heads``,
where both are registered. This half needs no torch.

Legend: n samples, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bmnas.machine.errors import UserError, close, few

Array = npt.NDArray[Any]

#: The label of a sample whose class name is none of the task's; only the test part may have it
#: until it is checked.
UNKNOWN_LABEL = -1


class TaskKind(ABC):
    """How the labels of a kind of task are read and checked.

    ``least`` is the smallest number of classes, ``dtype`` the type in which labels reach a loss.
    """

    name: ClassVar[str]
    least: ClassVar[int] = 1
    dtype: ClassVar[npt.DTypeLike] = np.int64

    @abstractmethod
    def form(self, classes: int) -> str:
        """Return in words what type and shape labels have."""

    @abstractmethod
    def has_form(self, labels: Array, classes: int) -> bool:
        """Tell whether type and shape of ``labels`` are as ``form`` says."""

    @abstractmethod
    def values(self, classes: int) -> str:
        """Return in words what values labels have."""

    @abstractmethod
    def wrong(self, labels: Array, classes: int) -> npt.NDArray[np.bool_]:
        """Return which of ``labels`` have another value, as an array of their shape."""

    def shown(self, label: Any) -> str:
        """Return a wrong label as a message shows it."""
        return str(label)

    def absent(self, labels: Array, classes: int) -> list[int]:
        """Return the numbers of the classes that no label of the train part has."""
        return []

    def outputs(self, classes: int) -> int:
        """Return how many numbers a network gives for a sample."""
        return classes

    def strata(self, labels: Array) -> Array | None:
        """Return what a split at random keeps in proportion (n,), None where there is nothing."""
        return None

    def encode(
        self, labels: Array, seen: Array, names: Sequence[str] | None, place: str
    ) -> tuple[Array, tuple[str, ...]]:
        """Return labels of a user's table as numbers, and the names of the classes.

        ``seen`` (n,) tells which samples are of train or validation, on which alone the classes
        may depend; ``names`` are the class names where the user gave some; ``place`` stands in
        messages. Raises UserError for a label that names no class. Labels of another form come
        back as they are: ``check_task`` reports them with whatever else is wrong.
        """
        width = labels.shape[1] if labels.ndim == 2 else 1
        return labels, class_names_or_numbers(names, width)

    @abstractmethod
    def synthetic(self, count: int, classes: int) -> Array:
        """Return labels of ``count`` samples of no real task, to measure how long things take."""


class Multiclass(TaskKind):
    """One class of K: labels are integers (n,)."""

    name = "multiclass"
    least = 2

    def form(self, classes: int) -> str:
        """Return that they are one integer a sample."""
        return "integers of shape (samples)"

    def has_form(self, labels: Array, classes: int) -> bool:
        """Tell whether they are one integer a sample."""
        return labels.ndim == 1 and labels.dtype.kind in "iu"

    def values(self, classes: int) -> str:
        """Return the range of class numbers."""
        return f"0 to {classes - 1}"

    def wrong(self, labels: Array, classes: int) -> npt.NDArray[np.bool_]:
        """Return which are no class numbers."""
        return np.asarray((labels < 0) | (labels >= classes))

    def shown(self, label: Any) -> str:
        """Return the label, and what it means where a class name was not known."""
        unknown = " (no class, or a name that is none of the class names)"
        return f"{label}{unknown if label == UNKNOWN_LABEL else ''}"

    def absent(self, labels: Array, classes: int) -> list[int]:
        """Return the classes that do not occur."""
        return sorted(set(range(classes)) - set(labels.tolist()))

    def strata(self, labels: Array) -> Array | None:
        """Return the classes."""
        return labels if labels.ndim == 1 else None

    def encode(
        self, labels: Array, seen: Array, names: Sequence[str] | None, place: str
    ) -> tuple[Array, tuple[str, ...]]:
        """Number class names, in the order of ``names`` or of the alphabet."""
        if labels.dtype.kind not in "iuU" or labels.ndim != 1 or labels.shape != seen.shape:
            return labels, class_names_or_numbers(names, 0)
        known = labels[seen]
        if labels.dtype.kind != "U":
            count = int(known.astype(np.int64).max(initial=-1)) + 1
            if names is None and count > len(labels):
                raise UserError(
                    f"{place}: received {count - 1} among {len(labels)} samples, "
                    "expected 0 to K - 1"
                )
            return labels.astype(np.int64), class_names_or_numbers(names, count)
        names = tuple(np.unique(known).tolist()) if names is None else tuple(names)
        numbers = {name: number for number, name in enumerate(names)}
        coded = np.array([numbers.get(v, UNKNOWN_LABEL) for v in labels.tolist()], dtype=np.int64)
        # A test label that is no class is for check_test to report: a search must not depend on it.
        unknown = np.flatnonzero((coded == UNKNOWN_LABEL) & seen)
        if len(unknown):
            row = int(unknown[0])
            raise UserError(
                f"{place}: row {row}: received {str(labels[row])!r}, expected a class name: "
                f"{few(names, 8)}"
            )
        return coded, names

    def synthetic(self, count: int, classes: int) -> Array:
        """Return the classes in turn."""
        return np.arange(count) % classes


class Multilabel(TaskKind):
    """Any of K labels: a matrix (n, K) of zeros and ones."""

    name = "multilabel"
    dtype = np.float32

    def form(self, classes: int) -> str:
        """Return that they are a matrix with a column for each class."""
        return f"0 and 1 of shape (samples, {classes})"

    def has_form(self, labels: Array, classes: int) -> bool:
        """Tell whether they are a matrix with a column for each class."""
        return labels.ndim == 2 and labels.shape[1] == classes and labels.dtype.kind in "biuf"

    def values(self, classes: int) -> str:
        """Return that they are zeros and ones."""
        return "only 0 and 1"

    def wrong(self, labels: Array, classes: int) -> npt.NDArray[np.bool_]:
        """Return which are neither 0 nor 1."""
        return np.asarray(~((labels == 0) | (labels == 1)))

    def absent(self, labels: Array, classes: int) -> list[int]:
        """Return the labels that no sample has."""
        absent: list[int] = np.flatnonzero(~(labels == 1).any(0)).tolist()
        return absent

    def synthetic(self, count: int, classes: int) -> Array:
        """Return rows in which every other label is set."""
        return (np.arange(count)[:, None] + np.arange(classes)) % 2


#: Every kind of task by its name; ``bmnas.training.heads.register_head`` adds one.
TASK_KINDS: dict[str, TaskKind] = {kind.name: kind for kind in (Multiclass(), Multilabel())}


def task_kind(name: str) -> TaskKind:
    """Return the kind called ``name``; raises UserError when none is registered."""
    if name in TASK_KINDS:
        return TASK_KINDS[name]
    raise UserError(
        f"received the task kind {name!r}, expected {' or '.join(TASK_KINDS)}"
        f"{close(name, list(TASK_KINDS))}; a kind of your own must be registered first: name the "
        "task with --task module:attribute, whose module does it"
    )


def class_names_or_numbers(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Return ``names`` as a tuple, or ``"0"`` to ``str(classes - 1)`` when there are none."""
    return tuple(names) if names is not None else tuple(str(k) for k in range(classes))
