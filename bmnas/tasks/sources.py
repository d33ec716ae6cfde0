"""How rows of a modality are made of the fields of a table, in training and when predicting.

A ``Source`` is plain data. It stands in the manifest of a bundle, so that rows of another table are
made in the same way. Legend: n rows, D numbers of a vector, T frames or samples, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bmnas.machine.errors import UserError, at, few
from bmnas.machine.schema import plain, read
from bmnas.tasks.columns import Columns, text_array
from bmnas.tasks.decoded import DecodedRows, Kept
from bmnas.tasks.kinds import Array
from bmnas.tasks.media import (
    Fit,
    picture_facts,
    read_picture,
    read_sound,
    read_text,
    read_video,
    sound_facts,
    told_pictures,
    told_sounds,
)
from bmnas.tasks.pictures import PicturePlan
from bmnas.tasks.task import ModalityType

#: Endings of files that a table names, by the type of modality that they are.
ENDINGS: Mapping[ModalityType, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "waveform": (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"),
    "clip": (".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v"),
    "text": (".txt",),
}
_KEPT_BYTES = 512_000_000  # of decoded files, for each modality
#: Strings of a column that is part of a vector.
MOST_CATEGORIES = 64
#: What stands in a field that is empty.
MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "?"})


@dataclass(frozen=True)
class Pictures:
    """Pictures as (H, W, 3), or (H, W) where they are ``grey``, uint8.

    With ``resize`` they are made as a pretrained network's processor does it, by the filter
    ``resample`` of Pillow's: resized to (H', W') or, of one number, to that shorter side; (H, W) is
    then the middle.
    """

    height: int
    width: int
    fit: Fit = "crop"
    grey: bool = False
    resize: tuple[int, ...] = ()
    resample: int = 2
    type: Literal["image"] = "image"

    @property
    def row(self) -> tuple[tuple[int, ...], str]:
        """The axes and the dtype of a row."""
        return (self.height, self.width, *(() if self.grey else (3,))), "uint8"

    def decode(self, path: Path) -> Array:
        """Return the row of a file; raises UserError that names it."""
        size, plan = (self.height, self.width), None
        if self.resize:
            across = self.resize[-1] if len(self.resize) > 1 else 0
            plan = PicturePlan(
                size=(self.resize[0], across),
                keeps=not across,
                crop=size,
                resample=self.resample,
                scale=1.0,
                mean=(0.0,),
                std=(1.0,),
            )
        return read_picture(path, size, fit=self.fit, grey=self.grey, plan=plan)


@dataclass(frozen=True)
class Sounds:
    """The first ``samples`` of sounds at ``sample_rate`` a second as (T,) float32."""

    sample_rate: int
    samples: int
    type: Literal["waveform"] = "waveform"

    @property
    def row(self) -> tuple[tuple[int, ...], str]:
        """The axes and the dtype of a row."""
        return (self.samples,), "float32"

    def decode(self, path: Path) -> Array:
        """Return the row of a file; raises UserError that names it."""
        return read_sound(path, self.sample_rate, self.samples)


@dataclass(frozen=True)
class Videos:
    """``frames`` of a video, evenly spaced and squeezed to a square: (T, size, size, 3) uint8."""

    frames: int
    size: int
    type: Literal["clip"] = "clip"

    @property
    def row(self) -> tuple[tuple[int, ...], str]:
        """The axes and the dtype of a row."""
        return (self.frames, self.size, self.size, 3), "uint8"

    def decode(self, path: Path) -> Array:
        """Return the row of a file; raises UserError that names it."""
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return read_video(path, self.frames, self.size)


@dataclass(frozen=True)
class TextFiles:
    """Files of UTF-8 text, each a string."""

    type: Literal["text"] = "text"


#: What is made of the files that a column names.
Files = Pictures | Sounds | Videos | TextFiles
_FILES: dict[str, type[Files]] = {
    "image": Pictures, "waveform": Sounds, "clip": Videos, "text": TextFiles,
}  # fmt: skip


@dataclass(frozen=True)
class Numbers:
    """A column of numbers: less ``mean``, over ``deviation``, both of train; 0 where it is missing.

    With ``gaps`` a second number is 1 where it is missing, as it is somewhere in train.
    """

    column: str
    mean: float
    deviation: float
    gaps: bool = False

    @property
    def width(self) -> int:
        """How many numbers of the vector it makes."""
        return 1 + self.gaps

    def rows(self, fields: Array) -> Array:
        """Return (n, width) float32 of the ``fields`` (n,)."""
        values = numbers_of(self.column, fields)
        missing = np.isnan(values)
        scaled = np.where(missing, 0.0, (values - self.mean) / self.deviation)
        return np.stack([scaled, missing][: self.width], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Categories:
    """A column of strings: a number for each of ``names``, 1 for the one it is; else all are 0."""

    column: str
    names: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many numbers of the vector it makes."""
        return len(self.names)

    def rows(self, fields: Array) -> Array:
        """Return (n, width) float32 of the ``fields`` (n,)."""
        found = np.char.strip(fields if fields.dtype.kind in "UT" else fields.astype(np.str_))
        return np.asarray(found[:, None] == np.array(self.names), np.float32)


@dataclass(frozen=True)
class Source:
    """Where the rows of a modality come from: ``column``, whose values they are or whose files.

    ``folder`` is that of the files, relative to the table's or whole. Instead of one column
    ``vector`` has several, which make one vector (D,).
    """

    column: str = ""
    files: Files | None = None
    vector: tuple[Numbers | Categories, ...] = ()
    folder: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(one.column for one in self.vector) or (self.column,)

    def rows(
        self, columns: Columns, *, text: bool, below: Path | None = None
    ) -> tuple[Array | FileRows, Array | None]:
        """Return the rows and which of them each sample has, None where each has its own.

        Files lie ``below`` a folder, by default that of the table. ``text``: values are text.
        Raises UserError that names the column, and the file and row of what is wrong.
        """
        if self.vector:
            # The categories 01 and 02 are no numbers, even where a table has no others.
            found = [
                one.rows(columns.get(one.column, text=isinstance(one, Categories)))
                for one in self.vector
            ]
            return np.concatenate(found, 1), None
        if self.files is None:
            return columns.get(self.column, text=text), None
        paths, folder = _paths(columns, self.column), Path(self.folder).expanduser()
        if below is None:
            base, paths = columns.located(self.column, paths, folder)
        else:
            base = (below / folder).absolute()
        names, index = _different(paths)
        if isinstance(self.files, TextFiles):
            texts, wrong = read_all(read_text, [base / name for name in names])
            if wrong:
                told = few(wrong.values(), 20)
                raise UserError(f"column {self.column!r}: {len(wrong)} unreadable files: {told}")
            return text_array(texts), index
        return FileRows(base, names, self.files), index

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        if self.vector:
            return {"vector": plain(self.vector)}
        if self.files is None:
            return {"column": self.column}
        # A bundle goes to other machines, which do not have such a folder.
        whole = Path(self.folder).expanduser().is_absolute()
        folder = {} if whole or not self.folder else {"folder": self.folder}
        return {"column": self.column, "files": plain(self.files), **folder}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], place: str) -> Source:
        """Return what ``to_dict`` wrote; ``place`` stands in the UserError for anything else."""
        try:
            return cls._from_dict(data, place)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{place}: received {str(data)[:80]}, expected a source") from error

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any], place: str) -> Source:
        if "vector" in data:
            made: list[Numbers | Categories] = []
            for one in data["vector"]:
                categories = "names" in one
                made.append(
                    read(Categories, one, place) if categories else read(Numbers, one, place)
                )
            return cls(vector=tuple(made))
        found = data.get("files")
        if found is None:
            return cls(str(data["column"]))
        files = read(_FILES[found["type"]], found, place)
        return cls(str(data["column"]), files, folder=str(data.get("folder", "")))


class FileRows(DecodedRows[Path]):
    """Rows that ``files`` makes of what ``names`` name below ``base``; some are kept in memory."""

    remedy = "mend or replace them, or write broken = 'skip' into task.toml"

    def __init__(self, base: Path, names: Sequence[str], files: Pictures | Sounds | Videos) -> None:
        paths = [base / name for name in names]
        self.names, self.paths, self.files = tuple(names), tuple(paths), files
        self._read = Kept(files.decode, _KEPT_BYTES)
        axes, dtype = files.row
        inside = all(path.is_relative_to(base) for path in paths)
        super().__init__(
            self.paths,
            self._read,
            axes,
            dtype,
            folder=base if inside else Path(base.anchor),
            files=lambda path: [path],
            recipe=repr(files),
        )

    def told(self, numbers: Array) -> str:
        """Return what the files of the rows ``numbers`` (n,) are like, and how many are cut."""
        chosen = [self.paths[number] for number in numbers.tolist()]
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

    def unreadable(self, numbers: Array) -> dict[int, str]:
        """Return why a row of ``numbers`` (n,) cannot be read, by its number; all are read."""
        chosen = [self.paths[number] for number in numbers.tolist()]
        _, wrong = read_all(lambda path: self._read(path) is None, chosen)
        return {int(numbers[place]): reason for place, reason in wrong.items()}


def read_all(
    read_one: Callable[[Path], Any], paths: Sequence[Path]
) -> tuple[list[Any], dict[int, str]]:
    """Return what ``read_one`` makes of ``paths``, and why it could not, by their places."""

    def tried(path: Path) -> tuple[Any, str | None]:
        try:
            return read_one(path), None
        except UserError as error:
            return None, str(error)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(tried, paths))
    wrong = {place: reason for place, (_, reason) in enumerate(found) if reason is not None}
    return [one for one, _ in found], wrong


def _paths(columns: Columns, column: str) -> Array:
    """Return the paths (n,) that a column names."""
    fields = columns.get(column, text=True)
    if fields.ndim != 1 or fields.dtype.kind not in "UT":
        raise UserError(f"column {column!r}: received {fields.dtype}, expected paths of files")
    paths: Array = np.char.strip(fields)
    empty = np.flatnonzero(paths == "")
    if len(empty):
        raise UserError(
            f"column {column!r}: rows without a path ({len(empty)}): {few(empty, 20)}: fill them "
            "in, or take these rows out"
        )
    return paths


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


def numbers_of(column: str, fields: Array) -> npt.NDArray[np.float64]:
    """Return ``fields`` (n,) as float64, NaN where one is missing.

    Raises UserError that lists the rows with something else.
    """
    if fields.dtype.kind in "biuf":
        return fields.astype(np.float64)
    values = np.full(len(fields), np.nan)
    wrong = []
    for row, field in enumerate(fields.tolist()):
        number = number_of(str(field))
        if number is None:
            wrong.append(f"{str(field)[:40]!r} in row {row}")
        else:
            values[row] = number
    if wrong:
        raise UserError(
            f"column {column!r}: received {few(wrong, 12)} ({len(wrong)} such rows), expected "
            "numbers, or nothing where one is missing"
        )
    return values


def number_of(field: str) -> float | None:
    """Return a field as a number, NaN for a missing one, None for what is neither."""
    stripped = field.strip()
    if stripped.lower() in MISSING:
        return np.nan
    # float() takes 1_000 and infinity.
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", stripped):
        return None
    return float(stripped)


def fitted_vector(columns: Columns, names: Sequence[str], train: Array) -> Source:
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
    return Source(vector=tuple(made))
