"""The kinds of task, as far as data goes: what labels look like and how they are read.

The other half of a kind, loss and score and decision, is its head in ``bmnas.training.heads``,
where both are registered. This half needs no torch.

Legend: n samples, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bmnas.machine.errors import UserError, close, few

Array = npt.NDArray[Any]

#: The label of a sample whose class name is none of the task's; only the test part may have it
#: until it is checked.
UNKNOWN_LABEL = -1
#: The label of a validation or test sample whose class train does not have, as an answer to a
#: question may be: whatever a network says is wrong, and no loss counts it.
UNSEEN_LABEL = -100
#: The outputs of a network that gives numbers for each region and not for the whole sample.
REGIONWISE = 0
#: The numbers of a box.
BOX = "x1", "y1", "x2", "y2"
_FEW = 20  # different numbers are classes among however few samples


@dataclass(frozen=True)
class LabelScale:
    """Mean and standard deviation of labels that are numbers, K each, over the train samples.

    A network gives standardised numbers: label = mean + deviation * number.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class TaskKind(ABC):
    """How the labels of a kind of task are read and checked.

    ``least`` is the smallest number of classes, ``dtype`` the type in which labels reach a loss.
    ``ALONE`` tells whether a network of one modality can learn it; else it learns words of texts.
    ``PAIRS``: a sample is a pair of rows of two modalities, and its label their group.
    ``NUMBERS``: labels are numbers (n, K), and the names of classes are theirs.
    """

    name: ClassVar[str]
    least: ClassVar[int] = 1
    dtype: ClassVar[npt.DTypeLike] = np.int64
    ALONE: ClassVar[bool] = True
    PAIRS: ClassVar[bool] = False
    NUMBERS: ClassVar[bool] = False

    @abstractmethod
    def form(self, labels: Array, classes: int) -> str | None:
        """Return which type and shape ``labels`` should have, in words; None if they have it."""

    @abstractmethod
    def wrong(self, labels: Array, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
        """Return where ``labels`` have a value that they must not, and which they may, in words."""

    @abstractmethod
    def absent(self, labels: Array, classes: int) -> Array:
        """Return the numbers of the classes that none of ``labels`` has."""

    def belonging(self, labels: Array, classes: int) -> npt.NDArray[np.bool_] | None:
        """Return which sample has which class (n, K), None where labels are no classes."""
        return None

    def unseen(self, labels: Array) -> npt.NDArray[np.bool_]:
        """Return which samples (n,) have a class that train does not have."""
        return np.zeros(len(labels), dtype=np.bool_)

    def scale(self, labels: Array) -> LabelScale | None:
        """Return the scale of the ``labels`` of train; None where they are no numbers."""
        return None

    def outputs(self, classes: int) -> int:
        """Return how many numbers a network gives for a sample, or ``REGIONWISE``."""
        return classes

    def strata(self, labels: Array) -> Array | None:
        """Return what a split at random keeps in proportion (n,), None where there is nothing."""
        return None

    def encode(
        self, labels: Array, seen: Array, names: Sequence[str] | None, place: str
    ) -> tuple[Array, tuple[str, ...]]:
        """Return labels of a user's table as numbers, and the names of the classes.

        ``names`` are the class names where the user gave some. ``seen`` (n,) tells which samples
        must have one of them, those of train and validation; without names, on which samples the
        classes may depend, those of train. ``place`` stands in messages. Raises UserError for a
        label that names no class. Labels of another form come back as they are: ``check_task``
        reports them with whatever else is wrong.
        """
        return labels, _names_or_numbers(names, labels.shape[1] if labels.ndim == 2 else 1)


class Multiclass(TaskKind):
    """One class of K: labels are integers (n,)."""

    name = "multiclass"
    least = 2

    def form(self, labels: Array, classes: int) -> str | None:
        """Expect one integer a sample."""
        good = labels.ndim == 1 and labels.dtype.kind in "iu"
        return None if good else "integers of shape (samples)"

    def wrong(self, labels: Array, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
        """Find what is no class number."""
        return (labels < 0) | (labels >= classes), f"0 to {classes - 1}"

    def absent(self, labels: Array, classes: int) -> Array:
        """Return the classes that do not occur."""
        return np.setdiff1d(np.arange(classes), labels)

    def belonging(self, labels: Array, classes: int) -> npt.NDArray[np.bool_]:
        """Return one class a sample, none for a label that is none."""
        return np.asarray(labels[:, None] == np.arange(classes))

    def unseen(self, labels: Array) -> npt.NDArray[np.bool_]:
        """Return where the label is ``UNSEEN_LABEL``."""
        return np.asarray(labels == UNSEEN_LABEL)

    def strata(self, labels: Array) -> Array | None:
        """Return the classes."""
        return labels if labels.ndim == 1 else None

    def encode(
        self, labels: Array, seen: Array, names: Sequence[str] | None, place: str
    ) -> tuple[Array, tuple[str, ...]]:
        """Number class names, in the order of ``names``, of the numbers or of the alphabet.

        Whole numbers are class numbers where there are names, or where they are 0 to K - 1 in the
        samples ``seen``; else they, floats and booleans are the classes' names.
        """
        if labels.dtype.kind not in "biufUT" or labels.ndim != 1 or labels.shape != seen.shape:
            return labels, _names_or_numbers(names, 0)
        if labels.dtype.kind in "biuf":
            values = np.unique(labels[seen])
            if labels.dtype.kind in "iu" and (
                names is not None or np.array_equal(values, np.arange(len(values)))
            ):
                return labels.astype(np.int64), _names_or_numbers(names, len(values))
            if len(values) > max(_FEW, int(seen.sum()) // 2):
                raise UserError(
                    f"{place}: received {len(values)} different numbers among {int(seen.sum())} "
                    f"samples ({few(values.tolist())}), expected classes, which samples share"
                )
            # In the order of the numbers, as which they would not sort once they are names.
            names = [_written(value) for value in values] if names is None else names
            labels = np.array([_written(value) for value in labels], np.str_)
            return _numbered(labels, names, UNSEEN_LABEL), tuple(names)
        other = UNSEEN_LABEL if names is None else UNKNOWN_LABEL
        names = tuple(np.unique(labels[seen]).tolist() if names is None else names)
        coded = _numbered(labels, names, other)
        # A test label that is no class is for check_test to report: a search must not depend on it.
        for row in np.flatnonzero((coded == UNKNOWN_LABEL) & seen)[:1]:
            raise UserError(
                f"{place}: row {row}: received {str(labels[row])!r}, expected a class name: "
                f"{few(names, 8)}"
            )
        return coded, names


class Multilabel(TaskKind):
    """Any of K labels: a matrix (n, K) of zeros and ones."""

    name = "multilabel"
    dtype = np.float32

    def form(self, labels: Array, classes: int) -> str | None:
        """Expect a matrix with a column for each class."""
        good = labels.ndim == 2 and labels.shape[1] == classes and labels.dtype.kind in "biuf"
        return None if good else f"0 and 1 of shape (samples, {classes})"

    def wrong(self, labels: Array, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
        """Find what is neither 0 nor 1."""
        return (labels != 0) & (labels != 1), "only 0 and 1"

    def absent(self, labels: Array, classes: int) -> Array:
        """Return the labels that no sample has."""
        return np.flatnonzero(~(labels == 1).any(0))

    def belonging(self, labels: Array, classes: int) -> npt.NDArray[np.bool_]:
        """Return what the matrix says."""
        return np.asarray(labels == 1)


class Regression(TaskKind):
    """K numbers: labels are a matrix (n, K)."""

    name = "regression"
    # Years or prices in cents would lose digits as float32 before they are standardised.
    dtype = np.float64
    NUMBERS = True

    def form(self, labels: Array, classes: int) -> str | None:
        """Expect a matrix with a column for each number."""
        good = labels.ndim == 2 and labels.shape[1] == classes and labels.dtype.kind in "biuf"
        return None if good else f"numbers of shape (samples, {classes})"

    def wrong(self, labels: Array, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
        """Find what is NaN or infinite."""
        return ~np.isfinite(labels.astype(np.float64)), "finite numbers"

    def absent(self, labels: Array, classes: int) -> Array:
        """Return nothing: there are no classes."""
        return np.arange(0)

    def scale(self, labels: Array) -> LabelScale:
        """Return mean and standard deviation of each column."""
        numbers = labels.astype(np.float64)
        mean, deviation = numbers.mean(0), numbers.std(0)
        # Without this a constant would be divided by zero, or by what rounding leaves of it.
        flat = np.ptp(numbers, axis=0) == 0
        return LabelScale(tuple(mean.tolist()), tuple(np.where(flat, 1.0, deviation).tolist()))

    def encode(
        self, labels: Array, seen: Array, names: Sequence[str] | None, place: str
    ) -> tuple[Array, tuple[str, ...]]:
        """Return numbers (n, K) of (n,) or (n, K) numbers or strings; one name is numbered."""
        table = labels[:, None] if labels.ndim == 1 else labels
        if table.ndim != 2 or table.dtype.kind not in "biufUT" or len(table) != len(seen):
            return labels, _names_or_numbers(names, 1)
        if table.dtype.kind in "UT":
            table = _numbers(table, seen, place)
        names = _names_or_numbers(names, table.shape[1])
        if len(names) == 1 < table.shape[1]:
            names = tuple(f"{names[0]} {number}" for number in range(1, table.shape[1] + 1))
        return table, names


def _numbers(table: Array, seen: Array, place: str) -> Array:
    """Return strings (n, K) as numbers, NaN in rows that are not ``seen`` and hold none.

    Raises UserError that names the rows that are ``seen``.
    """
    found, wrong = np.full(table.shape, np.nan), []
    for row, fields in enumerate(table.tolist()):
        for column, field in enumerate(fields):
            try:
                found[row, column] = float(field)
            except ValueError:
                if seen[row]:
                    wrong.append(f"{field!r} in row {row}")
    if wrong:
        raise UserError(
            f"{place}: received {few(wrong, 8)} ({len(wrong)}), expected numbers, without "
            "units and thousands separators"
        )
    return found


class Answers(TaskKind):
    """What A people answered: class numbers (n, A), -1 for an answer that is no class.

    The fewer said the same, the less it counts, see ``AnswersHead``.
    """

    name = "answers"
    least = 2

    def form(self, labels: Array, classes: int) -> str | None:
        """Expect an integer for each answer."""
        good = labels.ndim == 2 and labels.dtype.kind in "iu"
        return None if good else "integers of shape (samples, answers)"

    def wrong(self, labels: Array, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
        """Find what is neither a class number nor -1."""
        expected = f"0 to {classes - 1}, or {UNKNOWN_LABEL} for an answer that is no class"
        return (labels < UNKNOWN_LABEL) | (labels >= classes), expected

    def absent(self, labels: Array, classes: int) -> Array:
        """Return the classes that nobody answered."""
        return np.setdiff1d(np.arange(classes), labels)

    def belonging(self, labels: Array, classes: int) -> npt.NDArray[np.bool_]:
        """Return which classes somebody answered."""
        found = np.zeros((len(labels), classes + 1), np.bool_)
        np.put_along_axis(found, labels, True, axis=1)  # -1 is the last
        return found[:, :-1]

    def unseen(self, labels: Array) -> npt.NDArray[np.bool_]:
        """Return where no answer is a class."""
        return np.asarray((labels == UNKNOWN_LABEL).all(-1))

    def strata(self, labels: Array) -> Array | None:
        """Return the first answers."""
        return labels[:, 0] if labels.ndim == 2 else None

    def encode(
        self, labels: Array, seen: Array, names: Sequence[str] | None, place: str
    ) -> tuple[Array, tuple[str, ...]]:
        """Number the answers (n, A) of A people, or of one (n,), numbers or strings.

        What is none of the classes, such as an empty string, is no answer.
        """
        table = labels[:, None] if labels.ndim == 1 else labels
        if table.ndim != 2 or table.dtype.kind not in "iuUT" or len(table) != len(seen):
            return labels, _names_or_numbers(names, 0)
        if table.dtype.kind not in "UT":
            most = int(table[seen].astype(np.int64).max(initial=-1))
            return table.astype(np.int64), _names_or_numbers(names, most + 1)
        if names is None:
            names = [name for name in np.unique(table[seen]).tolist() if name.strip()]
        numbers = {name: number for number, name in enumerate(names)}
        coded = [[numbers.get(v, UNKNOWN_LABEL) for v in row] for row in table.tolist()]
        return np.array(coded, np.int64).reshape(table.shape), tuple(names)


class Grounding(TaskKind):
    """Which region of a picture a text means: the corners x1, y1, x2, y2 of its box, (n, 4).

    They are the first and last pixels that it covers. A network gives numbers for each region.
    """

    name = "grounding"
    dtype = np.float32
    ALONE = False

    def form(self, labels: Array, classes: int) -> str | None:
        """Expect four numbers a sample."""
        good = labels.ndim == 2 and labels.shape[1] == len(BOX) and labels.dtype.kind in "iuf"
        return None if good else "boxes x1, y1, x2, y2 in pixels, of shape (samples, 4)"

    def wrong(self, labels: Array, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
        """Find what is no number, and where a box ends before it begins."""
        wrong = ~np.isfinite(labels.astype(np.float64))
        wrong[:, 2:] |= labels[:, 2:] < labels[:, :2]
        return wrong, "numbers, x1 at most x2 and y1 at most y2"

    def absent(self, labels: Array, classes: int) -> Array:
        """Return nothing: there are no classes."""
        return np.arange(0)

    def outputs(self, classes: int) -> int:
        """Return that there are numbers for each region."""
        return REGIONWISE

    def encode(
        self, labels: Array, seen: Array, names: Sequence[str] | None, place: str
    ) -> tuple[Array, tuple[str, ...]]:
        """Return boxes as they are; the names are those of their numbers."""
        return labels, BOX


class Matching(TaskKind):
    """Whether rows of two modalities belong together: samples are pairs that do.

    Labels are groups (n,): rows of samples of one group belong together, such as a picture and all
    of its captions.
    """

    name = "matching"
    ALONE = False
    PAIRS = True

    def form(self, labels: Array, classes: int) -> str | None:
        """Expect one integer a sample."""
        good = labels.ndim == 1 and labels.dtype.kind in "iu"
        return None if good else "integers of shape (samples), equal for what belongs together"

    def wrong(self, labels: Array, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
        """Find what is no number of a group."""
        return labels < 0, "0 or more"

    def absent(self, labels: Array, classes: int) -> Array:
        """Return nothing: there are no classes."""
        return np.arange(0)

    def outputs(self, classes: int) -> int:
        """Return that there is one logit for a pair."""
        return 1

    def encode(
        self, labels: Array, seen: Array, names: Sequence[str] | None, place: str
    ) -> tuple[Array, tuple[str, ...]]:
        """Number groups that are strings."""
        if labels.dtype.kind in "UT" and labels.ndim == 1:
            labels = np.unique(labels, return_inverse=True)[1]
        return labels, ("match",)


#: Every kind of task by its name; ``bmnas.training.heads.register_head`` adds one.
TASK_KINDS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (Multiclass(), Multilabel(), Regression(), Answers(), Grounding(), Matching())
}


def task_kind(name: str) -> TaskKind:
    """Return the kind called ``name``; raises UserError when none is registered."""
    if name in TASK_KINDS:
        return TASK_KINDS[name]
    raise UserError(
        f"received the task kind {name!r}, expected {' or '.join(TASK_KINDS)}"
        f"{close(name, list(TASK_KINDS))}; a kind of your own must be registered first: name the "
        "task with --task module:attribute, whose module does it"
    )


def _numbered(labels: Array, names: Sequence[str], other: int) -> Array:
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers.get(label, other) for label in labels.tolist()], dtype=np.int64)


def _written(value: Any) -> str:
    """Return a number as people write it: 1 for 1.0, true for a boolean."""
    if isinstance(value, np.bool_):
        return str(bool(value)).lower()
    return str(int(value)) if np.isfinite(value) and value == int(value) else str(value)


def _names_or_numbers(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)) if names is None else names)
