"""Is a task usable? Every problem at once, in one line.

``check_task`` looks at train and validation and never at the data or labels of the test part;
``check_test`` looks at that part, when the time has come to measure it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bmnas.machine.errors import close, few
from bmnas.machine.schema import Problem, SchemaError
from bmnas.tasks.kinds import BOX, TASK_KINDS, UNKNOWN_LABEL, Array, task_kind
from bmnas.tasks.left_out import LEFT_OUT, left_out
from bmnas.tasks.load import FOLDER_TASKS
from bmnas.tasks.rows import Data, Rows, pieces, read_rows
from bmnas.tasks.sources import FileRows
from bmnas.tasks.task import (
    MODALITY_TYPES,
    PARTS,
    ROW_AXES,
    Modality,
    ModalityType,
    Part,
    Task,
)

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_NAMED = "expected letters, digits, _ and -"
_WORD = re.compile(r"\w")

#: Tables as large as the vocabulary, and filters as long as a 25 ms frame, are made of these.
_MOST_TOKENS = 1_000_000
_MOST_LENGTH = 100_000
_HIGHEST_RATE = 192_000


class _Form(NamedTuple):
    """Arrays that a type takes: ranks, the sample axis counted, and NumPy dtypes, also in words."""

    ranks: tuple[int, ...]
    kinds: str  # of ``dtype.kind``
    name: str  # one more dtype
    words: str


_FORMS: dict[ModalityType, _Form] = {
    "clip": _Form((4, 5), "f", "uint8", "uint8 or floats"),
    "image": _Form((3, 4), "f", "uint8", "uint8 or floats"),
    "regions": _Form((3,), "f", "", "floats"),
    "sequence": _Form((3,), "fiu", "", "floats or integers"),
    "text": _Form((1,), "UT", "", "strings (NumPy dtype U)"),
    "tokens": _Form((2,), "iu", "", "integers"),
    "vector": _Form((2,), "fiu", "", "floats or integers"),
    "waveform": _Form((2,), "f", "int16", "floats or int16"),
}


def check_task(task: Task) -> None:
    """Check names, shapes, types, parts, and the labels and data of train and validation.

    Arrays are read in pieces, so that one on disk need not fit in memory.

    Raises UserError: one line with every problem that was found.
    """
    problems = [*_not_arrays(task)] or [*_frame(task)]
    if not problems:
        problems = [*_content(task, "train", "validation"), *_missing_from_train(task)]
    _raise(task, problems)


def check_test(task: Task) -> None:
    """Check the labels and data of the test part, which ``check_task`` leaves alone.

    The task has passed ``check_task`` before.

    Raises UserError: one line with every problem that was found.
    """
    _raise(task, [*_content(task, "test")])


def task_problems(task: Task) -> tuple[list[str], bool]:
    """Return the problems that show without reading data, of all parts, each a line.

    The other value says whether names, shapes and types are right, so that data can be read.
    """
    problems = [*_not_arrays(task)] or [*_frame(task)]
    if problems:
        return problems, False
    return [*_content(task, *PARTS, read=False), *_missing_from_train(task)], True


def notes(task: Task, *parts: Part) -> Iterator[str]:
    """Yield what is to be known of a task that can be used: samples left out, unseen classes.

    A class is unseen that a sample in ``parts`` has and no train sample.
    """
    if count := task.source.get("left_out"):
        what = "1 sample is" if count == 1 else f"{count} samples are"
        yield f"{what} left out, as {task.source['data']}/{LEFT_OUT} says"
    elif task.left_out:
        counts = Counter(task.left_out)
        reasons = (f"{reason} ({n} samples)" if n > 1 else reason for reason, n in counts.items())
        yield f"samples that are left out: {len(task.left_out)}: {few(reasons, 20)}"
    if task.source.get("task") in FOLDER_TASKS:
        folder = Path(task.source["data"])
        if unknown := left_out(folder) - {*task.left_out}:
            yield (
                f"{folder / LEFT_OUT}: names no sample of task {task.name} by "
                f"{few(sorted(unknown))} ({len(unknown)}): right if other tasks on these files "
                "have them"
            )
    yield from task.remarks
    yield from _lacking(task, "train", *parts)
    kind, told = task_kind(task.kind), []
    for part in parts:
        unseen = kind.unseen(task.labels[task.samples(part)])
        if unseen.any():
            told.append(f"{unseen.sum()} of {len(unseen)} {part} samples")
    if told:
        yield (
            f"{' and '.join(told)} have a label that no train sample has: whatever is answered to "
            "them counts as wrong, and nothing is trained on them"
        )


def _lacking(task: Task, *parts: Part) -> Iterator[str]:
    """Yield a line on each modality that some samples lack, and on samples that lack all."""
    every: dict[Part, list[Array]] = {part: [] for part in parts}
    for modality in task.modalities:
        told = []
        for part in parts:
            lacking = modality.lacking(task.samples(part))
            every[part].append(lacking)
            if lacking.any():
                told.append(f"{lacking.sum()} of {len(lacking)} {part} samples")
        if told:
            yield (
                f"modality {modality.name}: {' and '.join(told)} lack it: its own network is "
                "trained and scored on the others"
            )
    for part, each in every.items():
        if count := np.logical_and.reduce(each).sum():
            lack = "sample lacks" if count == 1 else "samples lack"
            yield f"{count} {part} {lack} every modality: take these rows out"


def _raise(task: Task, problems: list[str]) -> None:
    if problems:
        raise SchemaError([Problem((), text) for text in problems], f"task {task.name}")


def _not_arrays(task: Task) -> Iterator[str]:
    """Fields of a task built in Python that are no arrays, such as lists."""
    fields: dict[str, object] = {"labels": task.labels, "part": task.part}
    for modality in task.modalities:
        if not isinstance(modality.data, Rows):
            fields[f"modality {modality.name}: data"] = modality.data
        if modality.index is not None:
            fields[f"modality {modality.name}: index"] = modality.index
        if modality.absent is not None:
            fields[f"modality {modality.name}: absent"] = modality.absent
    fields |= {f"extras: {name}": value for name, value in task.extras.items()}
    if task.types is not None:
        fields["types"] = task.types
    for place, value in fields.items():
        if not isinstance(value, np.ndarray):
            yield f"{place}: received a {type(value).__name__}, expected a NumPy array"


def _frame(task: Task) -> Iterator[str]:
    """Problems of names, shapes and types: nothing here reads the data."""
    if not _NAME.fullmatch(task.name):
        yield f"received the task name {task.name!r}, {_NAMED}"
    if task.kind not in TASK_KINDS:
        yield f"received kind {task.kind!r}, expected {' or '.join(TASK_KINDS)}"
        return
    samples, kind = _length(task.part), task_kind(task.kind)
    yield from _names(task)
    yield from _part_problems(task.part)
    expected = kind.form(task.labels, task.classes)
    if expected is not None:
        yield f"labels: received {_shape(task.labels)}, expected {expected}"
    if _length(task.labels) != samples:
        yield f"labels have {_length(task.labels)} samples and split has {samples}"
    for modality in task.modalities:
        yield from (
            f"modality {modality.name}{text}" for text in _modality_frame(modality, samples)
        )
    if task.names and len(task.names) != samples:
        yield f"received {len(task.names)} names of samples and split has {samples}"
    for name, extra in task.extras.items():
        if _length(extra) != samples or extra.dtype.kind not in "biuf":
            yield f"extras: {name}: received {_shape(extra)}, expected numbers of ({samples}, …)"
    yield from _class_weights(task)
    types = task.types
    if types is not None and (types.shape != (samples,) or types.dtype.kind not in "UT"):
        yield f"types: received {_shape(types)}, expected strings of shape ({samples})"


def _names(task: Task) -> Iterator[str]:
    names = [modality.name for modality in task.modalities]
    if len(names) < 2:
        received = f"one modality only ({names[0]})" if names else "no modality"
        yield f"{received}, expected two or more"
    elif len(names) > 2 and task_kind(task.kind).PAIRS:
        yield f"received the modalities {', '.join(names)}, expected two, of which pairs are made"
    yield from (
        f"received the modality name {n!r}, {_NAMED}" for n in names if not _NAME.fullmatch(n)
    )
    yield from (f"two modalities are called {n}" for n in sorted(_twice(names)))
    kind, optional = task_kind(task.kind), [m.name for m in task.modalities if m.absent is not None]
    if optional and not (kind.ALONE and kind.name != "answers"):
        yield (
            f"received missing = true for {', '.join(optional)}, expected none: {task.kind} needs "
            "every modality"
        )
    least = kind.least
    if task.classes < least:
        yield f"{task.kind}: received {task.classes} classes, expected at least {least}"
    yield from (f"two classes are called {n!r}" for n in sorted(_twice(task.class_names))[:1])


def _class_weights(task: Task) -> Iterator[str]:
    weights = task.class_weights
    if weights is None:
        return
    if task.kind not in ("multiclass", "multilabel"):
        yield f"class_weights: received kind {task.kind}, expected multiclass or multilabel"
    if weights == "balanced":
        return
    for name, weight in weights.items():
        if name not in task.class_names:
            known = list(task.class_names)
            yield (
                f"class_weights: received {name!r}, expected classes: {few(known, 8)}"
                f"{close(name, known)}"
            )
        elif not 0 < weight < float("inf"):
            yield f"class_weights: received {weight} for {name!r}, expected a number above 0"


def _part_problems(part: Array) -> Iterator[str]:
    if part.ndim != 1 or part.dtype.kind not in "iu":
        yield f"split: received {_shape(part)}, expected integers of shape (samples)"
        return
    for sample in np.flatnonzero((part < 0) | (part > 2))[:1]:
        yield f"split: received {part[sample]} for sample {sample}, expected 0, 1 or 2"
    for number, name in enumerate(PARTS):
        count = np.count_nonzero(part == number)
        if count == 0:
            yield f"zero samples in {name}"
        elif count == 1 and name != "test":
            # Both weights and architecture train in batches, and BatchNorm needs two samples.
            yield f"one sample only in {name}, expected two or more"


def _modality_frame(modality: Modality, samples: int) -> Iterator[str]:
    """Problems of a modality, each as it follows the modality's name."""
    data, index, type_ = modality.data, modality.index, modality.type
    if type_ not in MODALITY_TYPES:
        yield f": received type {type_!r}, expected {', '.join(MODALITY_TYPES)}"
        return
    form = _FORMS[type_]
    colours = len(form.ranks) > 1 and data.ndim == form.ranks[-1]
    if data.ndim not in form.ranks or (colours and data.shape[-1] != 3):
        yield f": received {_shape(data)}, expected rows of {ROW_AXES[type_]} for type {type_}"
    elif 0 in data.shape:
        yield f": received {_shape(data)}, which is empty"
    if data.dtype.kind not in form.kinds and data.dtype.name != form.name:
        yield f": received {_received(data)}, expected {form.words} for type {type_}"
    rate = modality.sample_rate
    if modality.length is not None and (type_ != "text" or not 0 < modality.length <= _MOST_LENGTH):
        yield (
            f": received length {modality.length} for type {type_}, expected a number of tokens, 1 "
            f"to {_MOST_LENGTH}, and only for type text"
        )
    if type_ == "waveform" and (rate is None or not 0 < rate <= _HIGHEST_RATE):
        received = "no sample_rate" if rate is None else f"sample_rate {rate}"
        yield f": received {received}, expected samples per second, 1 to {_HIGHEST_RATE}"
    weights: object = modality.weights
    if weights is not None and not (isinstance(weights, Path) and weights.is_file()):
        yield f": weights: received {weights!r}, expected the Path of a file that exists"
    if index is None:
        if _length(data) != samples:
            yield (
                f" has {_length(data)} rows and split has {samples}: "
                "lengths must agree, or an index must name each sample's row"
            )
    elif index.ndim != 1 or index.dtype.kind not in "iu":
        yield f": index: received {_shape(index)}, expected integers of shape (samples)"
    elif len(index) != samples:
        yield f": index has {len(index)} samples and split has {samples}"
    absent = modality.absent
    if absent is not None and (absent.shape != (len(data),) or absent.dtype.kind != "b"):
        yield f": absent: received {_shape(absent)}, expected booleans of shape ({len(data)})"


def _received(data: Data) -> str:
    """Return the type of ``data``; of strings that ought to be numbers those that are none."""
    if isinstance(data, Rows) or data.dtype.kind not in "UT" or data.ndim != 1:
        return str(data.dtype)
    wrong = []
    for row, field in enumerate(data.tolist()):
        try:
            float(field)
        except ValueError:
            wrong.append(f"{field[:40]!r} in row {row}")
    return f"strings, {len(wrong)} of which are no numbers ({few(wrong, 8)})"


def _content(task: Task, *parts: Part, read: bool = True) -> Iterator[str]:
    """Problems of labels and index of the samples in ``parts``, and of data if they are read."""
    samples = task.samples(*parts)
    labels = task.labels[samples]
    kind = task_kind(task.kind)
    wrong, expected = kind.wrong(labels, task.classes)
    wrong[kind.unseen(labels) & (task.part[samples] != PARTS.index("train"))] = False
    for sample, *column in np.argwhere(wrong)[:1]:
        label = labels[(sample, *column)]
        unknown = ""
        if label == UNKNOWN_LABEL and not column:
            unknown = " (no class, or a name that is none of the class names)"
        place = _place(task, samples[sample])
        yield f"labels out of range: received {label}{unknown} for {place}, expected {expected}"
    for modality in task.modalities:
        rows, last = modality.rows_of(samples), len(modality.data) - 1
        outside = np.flatnonzero((rows < 0) | (rows > last))
        if len(outside):
            yield (
                f"modality {modality.name}: index out of range: received {rows[outside[0]]} for "
                f"{_place(task, samples[outside[0]])}, expected 0 to {last}"
            )
            continue
        lacking = modality.lacking(samples)
        for part in parts:
            count = np.count_nonzero(~lacking[task.part[samples] == PARTS.index(part)])
            # Of train a modality needs two, as BatchNorm has no statistics of one sample.
            if count < (least := 2 if part == "train" else 1) and lacking.any():
                yield (
                    f"modality {modality.name}: {count} {part} samples have it, expected at least "
                    f"{least}: leave the modality out"
                )
        used = np.unique(rows[~lacking])
        if isinstance(modality.data, FileRows):
            if read:
                yield from _broken_files(modality, modality.data.unreadable(used))
            continue
        bad = _bad_rows(modality, used) if read else used[:0]
        if len(bad):
            sample = samples[np.flatnonzero(rows == bad[0])[0]]
            more = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
            what, place = wrong_values(modality), _place(task, sample)
            yield f"modality {modality.name}: {what} in row {bad[0]}, of {place}{more}"


def _broken_files(modality: Modality, wrong: dict[int, str]) -> Iterator[str]:
    if wrong:
        yield (
            f"modality {modality.name}: files that cannot be read ({len(wrong)}): "
            f"{few(wrong.values(), 20)}: {FileRows.remedy}; bmnas check lists all"
        )


def _bad_rows(modality: Modality, rows: Array) -> Array:
    """Return those of the sorted row numbers ``rows`` (n,) that no network can take."""
    data, bad = modality.data, [rows[:0]]
    if data.dtype.kind not in "fUT" and modality.type != "tokens":
        return rows[:0]
    for picked in pieces(data, rows):
        bad.append(picked[wrong_rows(modality, read_rows(data, picked))])
    return np.concatenate(bad)


def wrong_rows(modality: Modality, rows: Array) -> Array:
    """Return which of ``rows`` (n, *axes), read from ``modality``, no network can take, (n,) bool.

    What is wrong with them is ``wrong_values``.
    """
    if modality.type == "text":
        return np.asarray(np.char.str_len(np.char.strip(rows)) == 0)
    if modality.type == "tokens":
        return np.asarray(((rows < 0) | (rows >= _MOST_TOKENS)).any(1))
    if rows.dtype.kind != "f":
        return np.zeros(len(rows), np.bool_)
    # As float32, which the networks compute in: a larger number is infinite there.
    with np.errstate(over="ignore"):
        narrow = rows.astype(np.float32, copy=False)
    wrong = np.asarray(~np.isfinite(narrow).reshape(len(rows), -1).all(1))
    if modality.type == "regions":
        low, high = np.split(narrow[..., -len(BOX) :], 2, axis=-1)
        wrong |= (high < low).any((1, 2))
        # A picture is larger than a pixel: these are parts of its sides.
        wrong |= (high.max((1, 2)) > 0) & (high <= 1).all((1, 2))
    return wrong


def wrong_values(modality: Modality) -> str:
    """Return what is wrong with a row that no network can take, in words."""
    return {
        "text": "empty text",
        "regions": "NaN, infinite value or a box that is not x1, y1, x2, y2 in pixels",
        "tokens": f"a token outside 0 to {_MOST_TOKENS - 1}",
    }.get(modality.type, "NaN or infinite value")


def _missing_from_train(task: Task) -> Iterator[str]:
    """Classes without a sample, and texts without a word, so that no vocabulary can be made."""
    train, kind = task.samples("train"), task_kind(task.kind)
    absent = kind.absent(task.labels[train], task.classes)
    if len(absent):
        names = ", ".join(repr(task.class_names[k]) for k in absent[:5])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        yield f"{'class' if len(absent) == 1 else 'classes'} {names}{more} missing from train"
    if kind.NUMBERS:
        for number in np.flatnonzero(np.ptp(task.labels[train], axis=0) == 0):
            yield (
                f"label {task.class_names[number]!r}: received {task.labels[train[0], number]} for "
                "every train sample, expected numbers that differ"
            )
    if kind.unseen(task.labels[task.samples("validation")]).all():
        yield "no validation sample has a label that train has, expected some to choose by"
    for modality in task.modalities:
        if modality.type == "text":
            rows = np.unique(modality.rows_of(train))
            inside = rows[(rows >= 0) & (rows < len(modality.data))]
            if not any(_WORD.search(str(text)) for text in modality.data[inside]):
                yield f"modality {modality.name}: no train text has a word (a letter or digit)"


def _twice(names: list[str] | tuple[str, ...]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


def _length(array: Data) -> int:
    return array.shape[0] if array.ndim else 0


def _place(task: Task, sample: int) -> str:
    name = f", {task.names[sample]}" if task.names else ""
    return f"sample {sample} ({PARTS[int(task.part[sample])]}{name})"


def _shape(array: Data) -> str:
    return f"{array.dtype} of shape ({', '.join(map(str, array.shape))})"
