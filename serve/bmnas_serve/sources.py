"""How a row of an input is made of what a person has: the source that a manifest holds.

A ``Source`` is plain data, the same in training and in serving. Legend: n rows, D numbers of a
vector, T frames or samples, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.checks import Check, boolean, each, finite, one_of, table, text, wrong
from bmnas_serve.errors import DataError
from bmnas_serve.media import Fit, Placing, read_picture, read_sound, read_video

#: What stands in a field that is empty.
MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "?"})


@dataclass(frozen=True)
class Pictures:
    """Pictures as (H, W, 3), or (H, W) where they are ``grey``, uint8.

    With ``resize`` they are made as a pretrained network's processor does it, by the filter
    ``resample`` of Pillow's: resized to (H', W') or, of one number, to that shorter side; (H, W) is
    then the middle, ``rounded`` as in ``Placing``.
    """

    height: int
    width: int
    fit: Fit = "crop"
    grey: bool = False
    resize: tuple[int, ...] = ()
    resample: int = 2
    rounded: bool = False
    type: Literal["image"] = "image"

    @property
    def row(self) -> tuple[tuple[int, ...], str]:
        """The axes and the dtype of a row."""
        return (self.height, self.width, *(() if self.grey else (3,))), "uint8"

    def decode(self, file: BinaryIO, *, bounded: bool = False) -> NDArray[Any]:
        """Return the row of a file; see ``read_picture``."""
        size = self.height, self.width
        return read_picture(
            file, size, fit=self.fit, grey=self.grey, plan=self._plan(), bounded=bounded
        )

    def place(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return where the pixels of a picture of that size are in its row.

        By what x and y are multiplied, and what is then added to them.
        """
        if plan := self._plan():
            down, across = plan.resized(height, width)
            left, top = plan.corner(down, across)
            return across / width, down / height, -left, -top
        scale = self.width / width, self.height / height
        if self.fit == "squeeze":
            return *scale, 0.0, 0.0
        # Pillow makes a whole number of pixels where it pads, but cuts out parts of pixels.
        if self.fit == "crop":
            one = max(scale)
            return one, one, (self.width - one * width) / 2, (self.height - one * height) / 2
        across, down = (round(min(scale) * side) for side in (width, height))
        shift = round((self.width - across) / 2), round((self.height - down) / 2)
        return across / width, down / height, *shift

    def _plan(self) -> Placing | None:
        if not self.resize:
            return None
        across = self.resize[-1] if len(self.resize) > 1 else 0
        size = self.height, self.width
        resized = self.resize[0], across
        return Placing(resized, not across, size, self.resample, rounded=self.rounded)


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

    def decode(self, file: BinaryIO) -> NDArray[Any]:
        """Return the row of a file; see ``read_sound``."""
        return read_sound(file, self.sample_rate, self.samples)


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

    def decode(self, file: str | BinaryIO, **bounds: Any) -> NDArray[Any]:
        """Return the row of a file; see ``read_video``, also for the ``bounds``."""
        return read_video(file, self.frames, self.size, **bounds)


@dataclass(frozen=True)
class TextFiles:
    """Files of UTF-8 text, each a string."""

    type: Literal["text"] = "text"


#: What is made of the files that a column names.
Files = Pictures | Sounds | Videos | TextFiles


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

    def rows(self, fields: NDArray[Any]) -> NDArray[np.float32]:
        """Return (n, width) float32 of the ``fields`` (n,); see ``numbers_of``."""
        values = numbers_of(self.column, fields)
        missing = np.isnan(values)
        scaled = np.where(missing, 0.0, (values - self.mean) / self.deviation)
        return np.stack([scaled, missing][: self.width], axis=1).astype(np.float32)

    def field(self, made: NDArray[np.float32]) -> float | None:
        """Return the field that ``made`` (width,) was made of, to float32; None: missing."""
        if self.gaps and made[1]:
            return None
        return float(f"{made[0] * self.deviation + self.mean:.6g}")


@dataclass(frozen=True)
class Categories:
    """A column of strings: a number for each of ``names``, 1 for the one it is; else all are 0."""

    column: str
    names: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many numbers of the vector it makes."""
        return len(self.names)

    def rows(self, fields: NDArray[Any]) -> NDArray[np.float32]:
        """Return (n, width) float32 of the ``fields`` (n,)."""
        found = np.char.strip(fields if fields.dtype.kind in "UT" else fields.astype(np.str_))
        return np.asarray(found[:, None] == np.array(self.names), np.float32)

    def field(self, made: NDArray[np.float32]) -> str | None:
        """Return the name that ``made`` (width,) stands for, None for another than these."""
        return self.names[int(made.argmax())] if made.any() else None


@dataclass(frozen=True)
class Source:
    """Where the rows of a modality come from: ``column``, whose values they are or whose files.

    ``folder`` is that of the files, relative to the table's or whole. Instead of one column
    ``vector`` has several, which make one vector (D,). With ``missing`` a row may have no value in
    any column: it is zeros. A vector then ends with a further number, 1 where there is a value.
    """

    column: str = ""
    files: Files | None = None
    vector: tuple[Numbers | Categories, ...] = ()
    folder: str = ""
    missing: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(one.column for one in self.vector) or (self.column,)

    def vector_rows(self, column: Callable[[str, bool], NDArray[Any]]) -> NDArray[np.float32]:
        """Return (n, D) of the fields (n,) that ``column`` returns for a name.

        Its second argument is true where they are text: the categories 01 and 02 are no numbers,
        even where a table has no others.
        """
        fields = [column(one.column, isinstance(one, Categories)) for one in self.vector]
        made = [one.rows(own) for one, own in zip(self.vector, fields, strict=True)]
        if not self.missing:
            return np.concatenate(made, 1)
        told = np.any([~is_missing(own) for own in fields], axis=0)[:, None]
        return np.where(told, np.concatenate([*made, told], 1), 0).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        missing = {"missing": True} if self.missing else {}
        if self.vector:
            return {"vector": [_plain(one) for one in self.vector], **missing}
        if self.files is None:
            return {"column": self.column, **missing}
        # A bundle goes to other machines, which do not have such a folder.
        whole = Path(self.folder).expanduser().is_absolute()
        folder = {} if whole or not self.folder else {"folder": self.folder}
        return {"column": self.column, "files": _plain(self.files), **folder, **missing}

    @classmethod
    def from_dict(cls, data: Any, place: str) -> Self:
        """Return what ``to_dict`` wrote; FormatError, with ``place``, for anything else."""
        if isinstance(data, dict) and "vector" in data:
            known: dict[str, Check] = {"vector": each(_one_of_vector)}
            return cls(**table(data, place, known, {"missing": boolean}))
        optional = {"files": _files, "folder": text, "missing": boolean}
        return cls(**table(data, place, {"column": text}, optional))


def fields_of(
    vector: Sequence[Numbers | Categories], row: NDArray[Any]
) -> dict[str, float | str | None]:
    """Return the fields that a ``row`` (D,) of the columns of ``vector`` was made of, by name."""
    fields: dict[str, float | str | None] = {}
    start = 0
    for one in vector:
        fields[one.column] = one.field(row[start : start + one.width])
        start += one.width
    return fields


def numbers_of(column: str, fields: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``fields`` (n,) as float64, NaN where one is missing.

    Raises DataError that lists the rows with something else.
    """
    if fields.dtype.kind in "biuf":
        return fields.astype(np.float64)
    values = np.full(len(fields), np.nan)
    wrong_rows = []
    for row, field in enumerate(fields.tolist()):
        number = number_of(str(field))
        if number is None:
            wrong_rows.append(f"{str(field)[:40]!r} in row {row}")
        else:
            values[row] = number
    if wrong_rows:
        told = ", ".join(wrong_rows[:12]) + (", …" if len(wrong_rows) > 12 else "")
        raise DataError(
            f"column {column!r}: received {told} ({len(wrong_rows)} such rows), expected "
            "numbers, or nothing where one is missing"
        )
    return values


def is_missing(fields: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which of ``fields`` (n,) are empty, or say that there is nothing."""
    return np.array([str(field).strip().lower() in MISSING for field in fields.tolist()], np.bool_)


def number_of(field: str) -> float | None:
    """Return a field as a number, NaN for a missing one, None for what is neither."""
    stripped = field.strip()
    if stripped.lower() in MISSING:
        return np.nan
    # float() takes 1_000 and infinity.
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", stripped):
        return None
    return float(stripped)


def _plain(value: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(value).items()}


def _whole(low: int, high: int) -> Check:
    def check(value: Any, place: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise wrong(place, value, f"an integer from {low} to {high:,}")
        return value

    return check


_length, _rate = _whole(1, 2**24), _whole(1, 2**20)
#: By type: what makes rows of its files, what must be said of them and what may be.
_FILES: Mapping[str, tuple[type[Files], dict[str, Check], dict[str, Check]]] = {
    "image": (
        Pictures,
        {"height": _length, "width": _length},
        {
            "fit": one_of(("crop", "pad", "squeeze")),
            "grey": boolean,
            "resize": each(_length),
            "resample": _whole(0, 5),
            "rounded": boolean,
        },
    ),
    "waveform": (Sounds, {"sample_rate": _rate, "samples": _length}, {}),
    "clip": (Videos, {"frames": _length, "size": _length}, {}),
    "text": (TextFiles, {}, {}),
}


def _files(data: Any, place: str) -> Files | None:
    if data is None:
        return None
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in _FILES:
        raise wrong(f"{place}.type", kind, f"one of {', '.join(_FILES)}")
    made, required, optional = _FILES[kind]
    return made(**table(data, place, required, {"type": text, **optional}))


def _one_of_vector(data: Any, place: str) -> Numbers | Categories:
    if isinstance(data, dict) and "names" in data:
        return Categories(**table(data, place, {"column": text, "names": each(text)}, {}))
    required: dict[str, Check] = {"column": text, "mean": finite, "deviation": _deviation}
    return Numbers(**table(data, place, required, {"gaps": boolean}))


def _deviation(value: Any, place: str) -> float:
    number = finite(value, place)
    if number <= 0:
        raise wrong(place, value, "a number above 0")
    return number
