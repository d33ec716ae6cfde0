"""What a task consists of, and which of its rows cannot be used: every row is read once.

Legend: n rows, K classes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bmnas.machine.errors import UserError, few
from bmnas.machine.progress import Progress
from bmnas.tasks.check import task_problems, wrong_rows, wrong_values
from bmnas.tasks.kinds import Array, task_kind
from bmnas.tasks.rows import Data, Rows, pieces
from bmnas.tasks.sources import FileRows
from bmnas.tasks.task import PARTS, Modality, Task


@dataclass
class ReadModality:
    """What reading the rows of a modality showed.

    ``rows`` is how many the samples use, ``read`` how many of them were asked for. ``unusable``
    says of a row's number why it cannot be read or used; the numbers of all others lie between
    ``low`` and ``high``, words in a text counted. ``constant`` are rows of one number throughout,
    as a black picture is. ``digests`` are equal for rows of equal content, by their numbers.
    ``files`` says what the files of the rows are like, where rows are made of some.
    """

    modality: Modality
    rows: int
    read: int = 0
    seconds: float = 0.0
    low: float | None = None
    high: float | None = None
    unusable: dict[int, str] = field(default_factory=dict)
    constant: list[int] = field(default_factory=list)
    digests: dict[int, bytes] = field(default_factory=dict)
    files: str = ""

    def see(self, numbers: Array, rows: Array) -> None:
        """Take note of ``rows`` (n, *axes), those of ``numbers`` (n,)."""
        name = f"modality {self.modality.name}: {wrong_values(self.modality)} in row"
        wrong = wrong_rows(self.modality, rows)
        self.unusable |= {n: f"{name} {n}" for n in numbers[wrong].tolist()}
        numbers, rows = numbers[~wrong], rows[~wrong]
        for number, row in zip(numbers.tolist(), rows, strict=True):
            content = str(row).encode() if rows.dtype.kind in "UT" else row.tobytes()
            self.digests[number] = hashlib.blake2b(content, digest_size=16).digest()
        if not len(rows):
            return
        if self.modality.type == "text":
            flat = np.array([[len(str(text).split())] for text in rows])
        else:
            flat = rows.reshape(len(rows), -1)
        lows, highs = flat.min(1), flat.max(1)
        if flat.shape[1] > 1:
            self.constant += numbers[lows == highs].tolist()
        low, high = lows.min().item(), highs.max().item()
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)


@dataclass(frozen=True)
class Survey:
    """A task's samples of each part, labels and rows.

    ``counts`` (3, K) is how many samples of each part have each class, None where labels are no
    classes. Where ``problems`` of names, shapes or types keep data from being read, there are
    neither ``counts`` nor ``modalities``.
    """

    task: Task
    problems: list[str]
    counts: Array | None = None
    modalities: tuple[ReadModality, ...] = ()

    def unusable(self) -> Iterator[tuple[Modality, int, str, list[int]]]:
        """Yield modality, row, reason and samples of each row that cannot be used."""
        for found in self.modalities:
            rows = found.modality.rows_of(np.arange(len(self.task.part)))
            for row, reason in sorted(found.unusable.items()):
                yield found.modality, row, reason, np.flatnonzero(rows == row).tolist()


def duplicates(found: Survey) -> Iterator[str]:
    """Yield a line on samples, and on files, of validation or test that train has too.

    Compared is what the network is given: two files that become the same row are equal.
    """
    if not found.modalities:
        return
    task, every = found.task, np.arange(len(found.task.part))
    keys: dict[str, list[tuple[bytes | None, ...]]] = {}
    own = [
        [one.digests.get(row) for row in one.modality.rows_of(every).tolist()]
        for one in found.modalities
    ]
    keys["samples"] = list(zip(*own, strict=True))
    for one, digests in zip(found.modalities, own, strict=True):
        if isinstance(one.modality.data, FileRows):
            keys[f"samples by their {one.modality.name}"] = [(digest,) for digest in digests]
    for what, key_of in keys.items():
        train = {key_of[s]: s for s in reversed(task.samples("train").tolist())}
        for part in PARTS[1:]:
            same = [
                (s, train[key_of[s]])
                for s in task.samples(part).tolist()
                if None not in key_of[s] and key_of[s] in train
            ]
            if same:
                pairs = few((f"{part} {s} is train {first}" for s, first in same), 8)
                yield f"{len(same)} {what} of {part} are in train too: {pairs}"


def survey(task: Task, most: int | None = None, progress: Progress | None = None) -> Survey:
    """Look at all parts of a task and read every row of its modalities.

    Of more than ``most`` rows of a modality so many are read, evenly spaced, each with all that
    training may see of it. In memory are 32 MB of rows, or one, and what the rows keep themselves,
    see ``bmnas.tasks.decoded.Kept``. What cannot be read is no error here: it is in the result.
    """
    problems, readable = task_problems(task)
    if not readable:
        return Survey(task, problems)
    kind = task_kind(task.kind)
    parts = [kind.belonging(task.labels[task.samples(part)], task.classes) for part in PARTS]
    counts = [part.sum(0) for part in parts if part is not None]
    shown = Progress() if progress is None else progress
    read = tuple(_read(task, modality, most, shown) for modality in task.modalities)
    return Survey(task, problems, np.array(counts) if counts else None, read)


def _read(task: Task, modality: Modality, most: int | None, progress: Progress) -> ReadModality:
    rows = np.unique(modality.rows_of(np.arange(len(task.part))))
    rows = rows[(rows >= 0) & (rows < len(modality.data))]  # others are among the problems
    if modality.absent is not None:
        rows = rows[~modality.absent[rows]]
    found = ReadModality(modality, len(rows))
    if most is not None and most < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    started = time.perf_counter()
    with progress.stage(f"read {modality.name}", len(rows)) as stage:
        for some in pieces(modality.data, rows):
            for numbers, read in _readable(modality.data, some, found.unusable):
                found.see(numbers, read)
            stage.advance(len(some))
            if found.unusable:
                stage.message(f"{len(found.unusable)} cannot be used")
    if isinstance(modality.data, FileRows):
        found.files = modality.data.told(rows)
    found.read, found.seconds = len(rows), time.perf_counter() - started
    return found


def _readable(
    data: Data, numbers: Array, unreadable: dict[int, str]
) -> Iterator[tuple[Array, Array]]:
    """Yield the rows that can be read: all at once, or each alone where one of them cannot."""
    try:
        yield (
            numbers,
            np.asarray(data.read_whole(numbers) if isinstance(data, Rows) else data[numbers]),
        )
    except UserError as error:
        if len(numbers) == 1:
            unreadable[int(numbers[0])] = str(error)
            return
        for place in range(len(numbers)):
            yield from _readable(data, numbers[place : place + 1], unreadable)
