"""How rows of a modality are made of the fields of a table, in training and when predicting.

A ``Source`` is plain data. It stands in the manifest of a bundle, so that rows of another table are
made in the same way. Legend: n rows, D numbers of a vector, T frames or samples, H height, W width.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from bmnas_serve import sources as serving
from bmnas_serve.sources import (
    Categories,
    Numbers,
    Pictures,
    Sounds,
    TextFiles,
    Videos,
    is_missing,
    number_of,
    numbers_of,
)
from bmnas_serve.sources import fields_of as fields_of

from bmnas.machine.errors import UserError, at, few
from bmnas.tasks.columns import Columns
from bmnas.tasks.decoded import DecodedRows, Kept
from bmnas.tasks.kinds import Array
from bmnas.tasks.media import (
    file_of,
    picture_facts,
    read_text,
    read_video,
    sound_facts,
    telling,
    told_pictures,
    told_sounds,
)
from bmnas.tasks.rows import Data, pieces
from bmnas.tasks.task import ModalityType
from bmnas.tasks.text_arrays import text_array

T = TypeVar("T")

#: Endings of files that a table names, by the type of modality that they are.
ENDINGS: Mapping[ModalityType, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "waveform": (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"),
    "clip": (".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v"),
    "text": (".txt",),
}
_KEPT_BYTES = 512_000_000  # of decoded files, for each modality
#: Strings of a column that is part of a vector.
MOST_CATEGORIES = 64


class Source(serving.Source):
    """Where the rows of a modality come from, and how they are read of a table."""

    def rows(
        self,
        columns: Columns,
        *,
        text: bool,
        below: Path | None = None,
        unread: dict[int, str] | None = None,
    ) -> tuple[Array | FileRows, Array | None]:
        """Return the rows and which of them each sample has, None where each has its own.

        Files lie ``below`` a folder, by default that of the table. ``text``: values are text. Where
        rows may be ``missing``, a text or path that is empty is one that nothing is read for.
        ``unread`` gets why a row of texts cannot be read, by its number; by default that is an
        error.
        Raises UserError that names the column, and the file and row of what is wrong.
        """
        if self.vector:
            with telling():
                return self.vector_rows(lambda name, text: columns.get(name, text=text)), None
        if self.files is None:
            fields = columns.get(self.column, text=text)
            blank = self.missing and text and fields.ndim == 1 and fields.dtype.kind in "UT"
            return (_blanked(fields) if blank else fields), None
        paths = _paths(columns, self.column, self.missing)
        folder = Path(self.folder).expanduser()
        if below is None:
            base, paths = columns.located(self.column, paths, folder)
        else:
            base = (below / folder).absolute()
        names, index = _different(text_array([_spelt(base, path) for path in paths.tolist()]))
        if isinstance(self.files, TextFiles):
            texts, wrong = read_all(lambda name: read_text(base / name) if name else "", names)
            if unread is not None:
                unread |= wrong
            elif wrong:
                told = few(wrong.values(), 20)
                raise UserError(f"column {self.column!r}: {len(wrong)} unreadable files: {told}")
            found = text_array([text or "" for text in texts])
            return (_blanked(found) if self.missing else found), index
        return FileRows(base, names, self.files), index


class FileRows(DecodedRows[Path | None]):
    """Rows that ``files`` makes of what ``names`` name below ``base``; some are kept in memory.

    That of an empty name is zeros.
    """

    remedy = "mend or replace them, or write broken = 'skip' into task.toml"

    def __init__(self, base: Path, names: Sequence[str], files: Pictures | Sounds | Videos) -> None:
        paths = [base / name if name else None for name in names]
        self.names, self._paths, self.files = tuple(names), tuple(paths), files
        self._read = Kept(partial(_decode, files), _KEPT_BYTES)
        axes, dtype = files.row
        inside = all(path.is_relative_to(base) for path in paths if path is not None)
        super().__init__(
            self._paths,
            self._read,
            axes,
            dtype,
            folder=base if inside else Path(base.anchor),
            files=lambda path: [] if path is None else [path],
            recipe=repr(files),
        )

    def told(self, numbers: Array) -> str:
        """Return what the files of the rows ``numbers`` (n,) are like, and how many are cut."""
        chosen, _ = self._named(numbers)
        if isinstance(self.files, Videos):
            return ""
        pictures = isinstance(self.files, Pictures)
        found, _ = read_all(picture_facts if pictures else sound_facts, chosen)
        facts = [one for one in found if one is not None]
        if not facts:
            return ""
        if isinstance(self.files, Pictures):
            return told_pictures(facts)
        seconds = self.files.samples / self.files.sample_rate
        longer = sum(one["seconds"] > seconds for one in facts)
        return f"{told_sounds(facts)}, {longer} longer than {seconds:g} s and cut there"

    def sizes(self, numbers: Array) -> list[tuple[int, int]]:
        """Return height and width of the pictures of the rows ``numbers`` (n,), from their heads.

        Raises UserError that names those that cannot be read. A row without one has its own size.
        """
        chosen, named = self._named(numbers)
        facts, wrong = read_all(picture_facts, chosen)
        if wrong:
            raise UserError(f"pictures that cannot be read: {few(wrong.values(), 20)}")
        height, width = self.shape[1:3]
        found = {n: (f["height"], f["width"]) for n, f in zip(named.tolist(), facts, strict=True)}
        return [found.get(number, (height, width)) for number in numbers.tolist()]

    def unreadable(self, numbers: Array) -> dict[int, str]:
        """Return why a row of ``numbers`` (n,) cannot be read, by its number; all are read."""
        chosen, numbers = self._named(numbers)
        _, wrong = read_all(lambda path: self._read(path) is None, chosen)
        return {int(numbers[place]): reason for place, reason in wrong.items()}

    def _named(self, numbers: Array) -> tuple[list[Path], Array]:
        """Return the files of those rows of ``numbers`` (n,) that have one, and their numbers."""
        every = zip(numbers.tolist(), (self._paths[number] for number in numbers), strict=True)
        found = {number: path for number, path in every if path is not None}
        return [*found.values()], np.array([*found], np.int64)


def _decode(files: Pictures | Sounds | Videos, path: Path | None) -> Array:
    """Return the row of a file, zeros where there is none; raises UserError that names it."""
    if path is None:
        return np.zeros(*files.row)
    if isinstance(files, Videos):
        return read_video(path, files.frames, files.size)
    with file_of(path) as file:
        return files.decode(file)


def read_all(read_one: Callable[[T], Any], paths: Sequence[T]) -> tuple[list[Any], dict[int, str]]:
    """Return what ``read_one`` makes of ``paths``, and why it could not, by their places."""

    def tried(path: T) -> tuple[Any, str | None]:
        try:
            return read_one(path), None
        except UserError as error:
            return None, str(error)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(tried, paths))
    wrong = {place: reason for place, (_, reason) in enumerate(found) if reason is not None}
    return [one for one, _ in found], wrong


def _blanked(texts: Array) -> Array:
    """Return ``texts`` (n,) with nothing in place of those that are blank."""
    return text_array([text if text.strip() else "" for text in texts.tolist()])


def empty_rows(data: Data) -> Array:
    """Return which rows stand for a modality that a sample lacks, (rows,) bool.

    Those are rows without a file, blank texts, and rows of nothing but zeros or of nothing but NaN.
    """
    if isinstance(data, FileRows):
        return np.array([not name for name in data.names])
    if data.dtype.kind in "UT":
        return np.array([not str(text).strip() for text in np.asarray(data).tolist()])
    found = [np.zeros(0, np.bool_)]
    for some in pieces(data, np.arange(len(data))):
        rows = np.asarray(data[some]).reshape(len(some), -1)
        unknown = np.isnan(rows) if rows.dtype.kind == "f" else np.zeros_like(rows, np.bool_)
        found.append((rows == 0).all(1) | unknown.all(1))
    return np.concatenate(found)


def _paths(columns: Columns, column: str, missing: bool) -> Array:
    """Return the paths (n,) that a column names, empty ones only where some may be ``missing``."""
    fields = columns.get(column, text=True)
    if fields.ndim != 1 or fields.dtype.kind not in "UT":
        raise UserError(f"column {column!r}: received {fields.dtype}, expected paths of files")
    # Windows writes them with backslashes, which names of files elsewhere do not have.
    paths: Array = np.strings.replace(np.char.strip(fields), "\\", "/")
    if missing:
        return np.where(is_missing(paths), "", paths)
    empty = np.flatnonzero(paths == "")
    if len(empty):
        raise UserError(
            f"column {column!r}: rows without a path ({len(empty)}): {few(empty, 20)}: fill them "
            "in, take these rows out, or write missing = true into the modality's table"
        )
    return paths


def _spelt(base: Path, name: str) -> str:
    """Return the name of a file below ``base`` in one spelling: not ./a.jpg, nor the whole path.

    Letters with accents are one character or two as the file has them: which of them an archive
    has depends on the system that packed it, and people see no difference.
    """
    if not name:
        return ""
    name = os.path.normpath(name)
    if os.path.isabs(name) and Path(name).is_relative_to(base):
        name = Path(name).relative_to(base).as_posix()
    if not name.isascii() and not (base / name).exists():
        for form in ("NFC", "NFD"):
            if (base / (other := unicodedata.normalize(form, name))).exists():
                return other
    return name


def _different(paths: Array) -> tuple[list[str], Array | None]:
    """Return the different ones of ``paths`` (n,), and which of them each sample has."""
    unique, index = np.unique(paths, return_inverse=True)
    if len(unique) == len(paths):
        return paths.tolist(), None  # in the order of the table: neighbours are read together
    return unique.tolist(), index


def ending_of(values: Iterable[str]) -> ModalityType | None:
    """Return the type of the files that ``values`` name, None where they are no paths."""
    found = set()
    for value in values:
        ending = Path(value.strip()).suffix.lower() if "\n" not in value else ""
        found.add(next((type_ for type_, known in ENDINGS.items() if ending in known), None))
    return found.pop() if len(found) == 1 else None


def fitted_vector(
    columns: Columns, names: Sequence[str], train: Array, *, missing: bool = False
) -> Source:
    """Return the source of a vector of the columns ``names``, fitted to the samples ``train``.

    A column is one of numbers where all that train has are numbers; else its strings are
    categories. Raises UserError that names every column that can be neither.
    """
    made: list[Numbers | Categories] = []
    wrong = []
    for name in names:
        with at(f"columns: {name!r}"):
            fields = columns.get(name)
        if fields.ndim != 1 or len(fields) <= train.max(initial=-1):
            wrong.append(
                f"column {name!r}: received the shape {fields.shape}, expected a field a row"
            )
            continue
        told = fields[train]
        if told.dtype.kind in "iuf" or all(number_of(str(f)) is not None for f in told.tolist()):
            values = numbers_of(name, told)
            gaps = np.isnan(values)
            if gaps.all():
                wrong.append(f"column {name!r}: no train row has a value: leave the column out")
                continue
            mean, deviation = values[~gaps].mean(), values[~gaps].std()
            if not np.isfinite(deviation):
                wrong.append(f"column {name!r}: received numbers too large, or infinite, in train")
                continue
            constant = deviation <= 1e-9 * abs(mean)
            made.append(
                Numbers(
                    name, float(mean), float(deviation) if not constant else 1.0, bool(gaps.any())
                )
            )
            continue
        found = sorted({str(field).strip() for field in told.tolist()})
        if len(found) > MOST_CATEGORIES:
            wrong.append(
                f"column {name!r}: received {len(found)} different strings in train such as "
                f"{few(map(repr, found), 3)}, expected numbers or at most {MOST_CATEGORIES} "
                "categories: leave the column out, or make it a modality of type text"
            )
            continue
        made.append(Categories(name, tuple(found)))
    if wrong:
        raise UserError("; ".join(wrong))
    return Source(vector=tuple(made), missing=missing)
