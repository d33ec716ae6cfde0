"""Is a task usable? Every problem at once, in one line.

``check_task`` looks at train and validation and never at the data or labels of the test part;
``check_test`` looks at that part, when the time has come to measure it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import TASK_KINDS, Array, task_kind
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
_WORD = re.compile(r"\w")
_CHUNK_BYTES = 32_000_000
_SHOWN = 12

#: Tables as large as the vocabulary, and filters as long as a 25 ms frame, are made of these.
_MOST_TOKENS = 1_000_000
_HIGHEST_RATE = 192_000

#: What spoils a row of each type; of the others, NaN and what is infinite in float32.
_SPOILT: dict[ModalityType, str] = {
    "text": "empty text",
    "tokens": f"a token outside 0 to {_MOST_TOKENS - 1}",
}

#: Kinds of NumPy dtype (``dtype.kind``) and single dtypes that each type takes, and in words.
_DTYPES: dict[ModalityType, tuple[str, tuple[str, ...], str]] = {
    "clip": ("f", ("uint8",), "uint8 or floats"),
    "image": ("f", ("uint8",), "uint8 or floats"),
    "sequence": ("fiu", (), "floats or integers"),
    "text": ("U", (), "strings (NumPy dtype U)"),
    "tokens": ("iu", (), "integers"),
    "vector": ("fiu", (), "floats or integers"),
    "waveform": ("f", ("int16",), "floats or int16"),
}
#: Ranks that each type takes, the sample axis counted; with the last one, three colours.
_RANKS: dict[ModalityType, tuple[int, ...]] = {
    "clip": (4, 5),
    "image": (3, 4),
    "sequence": (3,),
    "text": (1,),
    "tokens": (2,),
    "vector": (2,),
    "waveform": (2,),
}


def check_task(task: Task) -> None:
    """Check names, shapes, types, parts, and the labels and data of train and validation.

    Arrays are read in chunks of at most 32 MB, so that one on disk need not fit in memory.

    Raises UserError: one line with every problem that was found.
    """
    problems = [*_not_arrays(task)] or [*_frame(task)]
    if not problems:
        problems += _content(task, ("train", "validation"))
        problems += _absent_classes(task)
        problems += _wordless(task)
    _raise(task, problems)


def check_test(task: Task) -> None:
    """Check the labels and data of the test part, which ``check_task`` leaves alone.

    The task has passed ``check_task`` before.

    Raises UserError: one line with every problem that was found.
    """
    _raise(task, [*_content(task, ("test",))])


def _raise(task: Task, problems: list[str]) -> None:
    if problems:
        rest = len(problems) - _SHOWN
        more = f"; and {rest} more" if rest > 0 else ""
        message = f"task {task.name}: {'; '.join(problems[:_SHOWN])}{more}"
        # Names that nobody has checked yet may hold line breaks.
        raise UserError(" ".join(message.split()))


def _not_arrays(task: Task) -> Iterator[str]:
    """Fields of a task built in Python that are no arrays, such as lists."""
    fields: list[tuple[str, object]] = [("labels", task.labels), ("part", task.part)]
    for modality in task.modalities:
        fields.append((f"modality {modality.name}: data", modality.data))
        if modality.index is not None:
            fields.append((f"modality {modality.name}: index", modality.index))
    fields += [(f"extras: {name}", value) for name, value in task.extras.items()]
    for place, value in fields:
        if not isinstance(value, np.ndarray):
            yield f"{place}: received a {type(value).__name__}, expected a NumPy array"


def _frame(task: Task) -> Iterator[str]:
    """Problems of names, shapes and types: nothing here reads the data."""
    if not _NAME.fullmatch(task.name):
        yield f"received the task name {task.name!r}, expected letters, digits, _ and -"
    if task.kind not in TASK_KINDS:
        yield f"received kind {task.kind!r}, expected {' or '.join(TASK_KINDS)}"
        return
    yield from _names(task)
    yield from _part_problems(task)
    yield from _label_shape(task)
    for modality in task.modalities:
        yield from _modality_frame(modality, _length(task.part))
    for name, extra in task.extras.items():
        if _length(extra) != _length(task.part) or extra.dtype.kind not in "biuf":
            expected = f"numbers of shape ({_length(task.part)}, …)"
            yield f"extras: {name}: received {_shape(extra)}, expected {expected}"


def _names(task: Task) -> Iterator[str]:
    names = [modality.name for modality in task.modalities]
    if not names:
        yield "no modality, expected two or more"
    if len(names) == 1:
        yield f"one modality only ({names[0]}), expected two or more"
    for name in names:
        if not _NAME.fullmatch(name):
            yield f"received the modality name {name!r}, expected letters, digits, _ and -"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two modalities are called {name}"
    least = task_kind(task.kind).least
    if task.classes < least:
        yield f"{task.kind}: received {task.classes} classes, expected at least {least}"
    if len(set(task.class_names)) < task.classes:
        twice = next(n for n in task.class_names if task.class_names.count(n) > 1)
        yield f"two classes are called {twice!r}"


def _part_problems(task: Task) -> Iterator[str]:
    part = task.part
    if part.ndim != 1 or part.dtype.kind not in "iu":
        yield f"split: received {_shape(part)}, expected integers of shape (samples)"
        return
    wrong = np.flatnonzero((part < 0) | (part > 2))
    if len(wrong):
        yield f"split: received {part[wrong[0]]} for sample {wrong[0]}, expected 0, 1 or 2"
    for number, name in enumerate(PARTS):
        count = np.count_nonzero(part == number)
        if count == 0:
            yield f"zero samples in {name}"
        elif count == 1 and name != "test":
            # Both weights and architecture train in batches, and BatchNorm needs two samples.
            yield f"one sample only in {name}, expected two or more"


def _label_shape(task: Task) -> Iterator[str]:
    labels, kind = task.labels, task_kind(task.kind)
    if not kind.has_form(labels, task.classes):
        yield f"labels: received {_shape(labels)}, expected {kind.form(task.classes)}"
    if _length(labels) != _length(task.part):
        yield f"labels have {_length(labels)} samples and split has {_length(task.part)}"


def _modality_frame(modality: Modality, samples: int) -> Iterator[str]:
    place = f"modality {modality.name}"
    data, index = modality.data, modality.index
    if modality.type not in MODALITY_TYPES:
        yield f"{place}: received type {modality.type!r}, expected {', '.join(MODALITY_TYPES)}"
        return
    kinds, single, words = _DTYPES[modality.type]
    ranks = _RANKS[modality.type]
    colours = modality.type in ("image", "clip") and data.ndim == ranks[-1]
    if data.ndim not in ranks or (colours and data.shape[-1] != 3):
        expected = f"rows of {ROW_AXES[modality.type]}"
        yield f"{place}: received {_shape(data)}, expected {expected} for type {modality.type}"
    elif 0 in data.shape:
        yield f"{place}: received {_shape(data)}, which is empty"
    if data.dtype.kind not in kinds and data.dtype.name not in single:
        yield f"{place}: received {data.dtype}, expected {words} for type {modality.type}"
    rate = modality.sample_rate
    if modality.type == "waveform" and (rate is None or not 0 < rate <= _HIGHEST_RATE):
        received = "no sample_rate" if rate is None else f"sample_rate {rate}"
        yield f"{place}: received {received}, expected samples per second, 1 to {_HIGHEST_RATE}"
    weights: object = modality.weights
    if weights is not None and not (isinstance(weights, Path) and weights.is_file()):
        yield f"{place}: weights: received {weights!r}, expected the Path of a file that exists"
    if index is None:
        if _length(data) != samples:
            yield (
                f"{place} has {_length(data)} rows and split has {samples}: "
                "lengths must agree, or an index must name each sample's row"
            )
    elif index.ndim != 1 or index.dtype.kind not in "iu":
        yield f"{place}: index: received {_shape(index)}, expected integers of shape (samples)"
    elif len(index) != samples:
        yield f"{place}: index has {len(index)} samples and split has {samples}"


def _content(task: Task, parts: tuple[Part, ...]) -> Iterator[str]:
    """Problems of labels, index and data of the samples in ``parts``."""
    samples = task.samples(*parts)
    yield from _label_values(task, samples)
    for modality in task.modalities:
        yield from _rows(task, modality, samples)


def _label_values(task: Task, samples: Array) -> Iterator[str]:
    labels, kind = task.labels[samples], task_kind(task.kind)
    wrong = kind.wrong(labels, task.classes)
    if wrong.any():
        first = tuple(np.argwhere(wrong)[0])
        place = _place(task, samples[first[0]])
        yield (
            f"labels out of range: received {kind.shown(labels[first])} for {place}, "
            f"expected {kind.values(task.classes)}"
        )


def _absent_classes(task: Task) -> Iterator[str]:
    absent = task_kind(task.kind).absent(task.labels[task.samples("train")], task.classes)
    if absent:
        names = ", ".join(repr(task.class_names[k]) for k in absent[:5])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        yield f"{'class' if len(absent) == 1 else 'classes'} {names}{more} missing from train"


def _wordless(task: Task) -> Iterator[str]:
    """Text modalities of which no train text has a word, so that no vocabulary can be made."""
    for modality in task.modalities:
        rows = modality.rows_of(task.samples("train"))
        inside = modality.type == "text" and np.all((rows >= 0) & (rows < len(modality.data)))
        if inside and not any(_WORD.search(str(text)) for text in modality.data[np.unique(rows)]):
            yield f"modality {modality.name}: no train text has a word (a letter or digit)"


def _rows(task: Task, modality: Modality, samples: Array) -> Iterator[str]:
    rows = modality.rows_of(samples)
    outside = (rows < 0) | (rows >= len(modality.data))
    if outside.any():
        first = np.flatnonzero(outside)[0]
        yield (
            f"modality {modality.name}: index out of range: received {rows[first]} for "
            f"{_place(task, samples[first])}, expected 0 to {len(modality.data) - 1}"
        )
        return
    if modality.data.dtype.kind not in "fU" and modality.type != "tokens":
        return
    wrong = _bad_rows(modality, np.unique(rows))
    if len(wrong):
        users = samples[np.isin(rows, wrong)]
        what = _SPOILT.get(modality.type, "NaN or infinite value")
        count = f" ({len(wrong)} such rows)" if len(wrong) > 1 else ""
        first = users[rows[np.isin(rows, wrong)].argmin()]
        yield (
            f"modality {modality.name}: {what} in row {wrong[0]}, of {_place(task, first)}{count}"
        )


def _bad_rows(modality: Modality, rows: Array) -> Array:
    """Return those of the sorted row numbers ``rows`` (n,) that no network can take."""
    data = modality.data
    row_bytes = max(data[:1].nbytes, 1)
    step = max(_CHUNK_BYTES // row_bytes, 1)
    bounds = [*range(0, len(rows), step), len(rows)]
    wrong = [rows[:0]]
    for start, stop in pairwise(bounds):
        picked = rows[start:stop]
        chunk = np.asarray(data[picked])
        if modality.type == "text":
            bad = np.char.str_len(np.char.strip(chunk)) == 0
        elif modality.type == "tokens":
            bad = ((chunk < 0) | (chunk >= _MOST_TOKENS)).any(1)
        else:
            # As float32, which the networks compute in: a larger number is infinite there.
            with np.errstate(over="ignore"):
                narrow = chunk.astype(np.float32, copy=False)
            bad = ~np.isfinite(narrow).reshape(len(chunk), -1).all(1)
        wrong.append(picked[bad])
    return np.concatenate(wrong)


def _length(array: Array) -> int:
    return array.shape[0] if array.ndim else 0


def _place(task: Task, sample: int) -> str:
    return f"sample {sample} ({PARTS[int(task.part[sample])]})"


def _shape(array: Array) -> str:
    return f"{array.dtype} of shape ({', '.join(map(str, array.shape))})"
