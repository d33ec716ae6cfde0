"""Named arrays from ``.npz``, ``.npy`` and tables; nothing is unpickled.

A column is a name and an array. Its name is the member of an ``.npz``, the stem of a ``.npy``,
the field of a ``.jsonl``, the header of a ``.csv`` or ``.tsv``, or the column of a ``.parquet`` or
of a folder of Hugging Face datasets; where two files have one of the same name, ``file:name`` tells
them apart.
"""

from __future__ import annotations

import csv
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError, close, few, one_line
from bmnas.machine.schema import received
from bmnas.tasks.arrow import Reader, arrow_folder, parquet_file
from bmnas.tasks.kinds import Array
from bmnas.tasks.text_arrays import DAMAGE, padded, reading, text_array

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+(,[0-9]+)?")
_FLATTEN = (
    "make each key a field of its own, as pandas.json_normalize does, or leave the field out of "
    "the task"
)
_SPREADSHEET = ": save it as CSV in UTF-8"
#: What to do about files of other kinds that people have.
_CONVERTING = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), _SPREADSHEET),
    ".json": ": write one object a line, as pandas does with orient='records', lines=True",
    **dict.fromkeys((".gz", ".zip", ".bz2", ".zst"), ": unpack it"),
}
_LONGEST_FIELD = 2**31 - 1


class Columns:
    """The columns of several files, each file opened now and each column read when asked for.

    Raises UserError when a file is missing, of an unknown kind, damaged or holds pickles.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._columns = [
            (f"{path.name}:{name}", name, reader, path.parent)
            for path in paths
            for name, reader in _open(path).items()
        ]
        self._read: dict[tuple[str, bool], Array] = {}

    @classmethod
    def of_fields(cls, fields: Mapping[str, str]) -> Columns:
        """Return the columns of one row, whose files are relative to the current folder."""
        columns = _OneRow([])
        columns._columns = [
            (name, name, partial(_fields, name, [field]), Path()) for name, field in fields.items()
        ]
        return columns

    def get(self, name: str, *, text: bool = False) -> Array:
        """Return the column called ``name`` or ``file:name``, the same object each time.

        Raises UserError when there is none, or when several files have one of that name.
        """
        if (name, text) not in self._read:
            array = self._find(name)[0](text)
            # Numbers of another byte order; a file that is mapped is turned when rows are read.
            if not array.dtype.isnative and not isinstance(array, np.memmap):
                array = array.astype(array.dtype.newbyteorder("="))
            self._read[name, text] = array
        return self._read[name, text]

    def names(self) -> list[str]:
        """Return the names of all columns, in the order of the files."""
        return [column[1] for column in self._columns]

    def lacking(self, names: Iterable[str]) -> list[str]:
        """Return which of ``names`` no column has."""
        known = {name for column in self._columns for name in column[:2]}
        return [name for name in names if name not in known]

    def folder(self, name: str) -> Path:
        """Return the folder of the file that has the column ``name``; raises UserError as above."""
        return self._find(name)[1]

    def located(self, name: str, paths: Array, folder: Path) -> tuple[Path, Array]:
        """Return a whole folder and the paths (n,) below it of the files that a column names.

        ``paths`` (n,) are its fields, relative to ``folder``, which is relative to the table's.
        """
        return (self.folder(name) / folder).absolute(), paths

    def _find(self, name: str) -> tuple[Reader, Path]:
        found = [column for column in self._columns if name in column[:2]]
        if len(found) == 1:
            return found[0][2:]
        if found:
            options = " or ".join(repr(column[0]) for column in found)
            raise UserError(f"received array {name!r}, which several files have: write {options}")
        # Whoever made the file may have put a line break into a name.
        names = [" ".join(column[1].split()) for column in self._columns]
        raise UserError(
            f"received array {name!r}, expected one of {', '.join(names)}{close(name, names)}"
        )


class _OneRow(Columns):
    """The columns of one sample; whoever writes its paths has no table beside them in mind."""

    def located(self, name: str, paths: Array, folder: Path) -> tuple[Path, Array]:
        return Path().absolute(), paths


class PartColumns(Columns):
    """The columns of one file for each part, below each other; ``part`` (samples,) numbers them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths[:1])
        self._parts = [Columns([path]) for path in paths]
        self._names = ", ".join(path.name for path in paths)
        self.part = np.zeros(0, np.uint8)

    def get(self, name: str, *, text: bool = False) -> Array:
        """Return the rows of all parts; raises UserError where one has no such column."""
        if (name, text) not in self._read:
            found = [part.get(name, text=text) for part in self._parts]
            if len({array.dtype.kind in "UT" for array in found}) > 1:
                # A field of one part is no number, or lists have another length.
                found = [part.get(name, text=True) for part in self._parts]
            if found[0].ndim == 2 and found[0].dtype.kind == "U":
                most = max(array.shape[1] for array in found)
                found = [np.pad(a, ((0, 0), (0, most - a.shape[1]))) for a in found]
            forms = {(array.shape[1:], array.dtype.kind in "UT") for array in found}
            if len(forms) > 1:
                raise UserError(f"{self._names}: {name}: received columns of different forms")
            self._read[name, text] = np.concatenate(found)
            self.part = np.repeat(np.arange(len(found)), [len(array) for array in found])
        return self._read[name, text]

    def located(self, name: str, paths: Array, folder: Path) -> tuple[Path, Array]:
        """Return as above; the paths of each part are relative to the folder of its own file."""
        places = [part.located(name, paths, folder)[0] for part in self._parts]
        if len({*places}) == 1:
            return places[0], paths
        base = Path(os.path.commonpath(places))
        below = [place.relative_to(base) for place in places]
        whole = zip(self.part.tolist(), paths.tolist(), strict=True)
        return base, text_array([str(below[part] / path) if path else "" for part, path in whole])


def read_npz(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Return the members ``names`` of an ``.npz`` file.

    Raises UserError, naming the file, when it is missing or damaged or lacks one of them.
    """
    columns = Columns([path])
    try:
        return {name: columns.get(name) for name in names}
    except UserError as error:
        message = str(error)
        raise UserError(message if str(path) in message else f"{path}: {message}") from error


def _open(path: Path) -> Mapping[str, Reader]:
    """Return what reads each column of a file, by name."""
    if path.is_dir():
        with reading(str(path)):
            return arrow_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    opened = _OPENED.get(path.suffix.lower())
    if opened is None:
        expected = f"one of {', '.join(_OPENED)}{_CONVERTING.get(path.suffix.lower(), '')}"
        raise UserError(f"{path}: received a {path.suffix or 'nameless'} file, expected {expected}")
    with reading(str(path)):
        return opened(path)


def _npz(path: Path) -> Mapping[str, Reader]:
    # numpy takes whatever is not a zip file for a pickle, and does not close a damaged one: it
    # gets to see only what zipfile can read.
    try:
        zipfile.ZipFile(path).close()
    except PermissionError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path}: not an .npz file, or a truncated one") from error
    with np.load(path, allow_pickle=False) as archive:
        return {name: partial(_member, path, name) for name in archive.files}


def _member(path: Path, name: str, text: bool) -> Array:
    """Return a member of an ``.npz``; what is a number in the file stays one."""
    with reading(f"{path}: {name}"), np.load(path, allow_pickle=False) as archive:
        array: Array | bytes = archive[name]
    if isinstance(array, bytes):
        raise UserError(f"{path}: {name}: not an array: expected what numpy.savez writes")
    return array


def _npy(path: Path) -> Mapping[str, Reader]:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {path.stem: lambda text: array}


def _jsonl(path: Path) -> Mapping[str, Reader]:
    rows: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}: line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not JSON: {one_line(error)}") from error
            if not isinstance(row, dict):
                raise UserError(f"{place}: {received(row, 'an object')}")
            rows[place] = row
    if not rows:
        raise UserError(f"{path}: received an empty file, expected one JSON object a line")
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: partial(_field, path, name, rows) for name in names}


def _field(path: Path, name: str, rows: Mapping[str, dict[str, Any]], text: bool) -> Array:
    """Return the field of every line: strings, numbers, or lists of numbers of one length."""
    values = [row.get(name) for row in rows.values()]
    nested = {place: keys for place, row in rows.items() if (keys := _keys(row.get(name)))}
    if nested:
        keys = sorted({key for own in nested.values() for key in own})
        raise UserError(
            f"{next(iter(nested))}: {name}: received objects with the keys {few(keys)} (rows: "
            f"{len(nested)} of {len(rows)}), expected strings, numbers or lists of them: {_FLATTEN}"
        )
    if any(map(_tags, values)) and all(_tags(value) or not value for value in values):
        return padded([value or [] for value in values])
    first: Any = next((value for value in values if value is not None), None)
    strings = isinstance(first, str)
    for place, row in rows.items():
        value = row.get(name)  # what has no value is often left out
        if value is None and first is not None:
            continue
        if isinstance(value, str) != strings or not (strings or _numeric(value)):
            expected = "a string" if strings else "a number or a list of numbers"
            raise UserError(f"{place}: {name}: {received(value, expected)}")
    truths = isinstance(first, bool) and None in values
    if strings or truths:
        return text_array(["" if value is None else str(value) for value in values])
    try:
        nothing = np.full(np.shape(first), np.nan)
        array = np.asarray([nothing if value is None else value for value in values])
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: {name}: lists of different lengths: fill them up to one length"
        ) from error
    if array.dtype == object:
        raise UserError(f"{path}: {name}: received an integer of more than 64 bits")
    return array


def _keys(value: Any) -> list[str]:
    """Return the keys of an object, or of the objects in a list."""
    if isinstance(value, list):
        return [key for item in value for key in _keys(item)]
    return [*value] if isinstance(value, dict) else []


def _tags(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(tag, str) for tag in value)


def _numeric(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_numeric, value))
    return isinstance(value, int | float)


def _csv(path: Path, delimiter: str = ",") -> Mapping[str, Reader]:
    csv.field_size_limit(_LONGEST_FIELD)  # its own is 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file:
        # Where a comma is that of decimals, spreadsheets write semicolons.
        if delimiter == "," and "," not in (header := file.readline()) and ";" in header:
            delimiter = ";"
        file.seek(0)
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(lines, [])]
        rows = []
        for row in filter(None, lines):
            rows.append(row)
            if len(row) != len(names):
                raise UserError(
                    f"{path}: line {lines.line_num}: received {len(row)} fields, "
                    f"expected {len(names)} as in the header"
                )
    while rows and not "".join(rows[-1]).strip():
        rows.pop()  # spreadsheets leave lines of mere separators at the end
    if not rows:
        raise UserError(f"{path}: received no row, expected a header line and rows below it")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: the header names a column twice: {', '.join(names)}")
    columns: Iterator[tuple[str, Sequence[str]]] = zip(names, zip(*rows, strict=True), strict=True)
    if delimiter == ";":
        columns = ((name, _with_points(fields)) for name, fields in columns)
    return {name: partial(_fields, f"{path}: {name}", fields) for name, fields in columns}


def _with_points(fields: Sequence[str]) -> Sequence[str]:
    """Return fields with points for commas, where all that are not empty are such decimals."""
    told = [field.strip() for field in fields if field.strip()]
    if any("," in field for field in told) and all(map(_DECIMAL_COMMA.fullmatch, told)):
        return [field.replace(",", ".") for field in fields]
    return fields


def _fields(place: str, fields: Sequence[str], text: bool) -> Array:
    """Return int64 or float64 where every field is such a number, else strings."""
    if text:
        return text_array(fields)
    if all(map(_INTEGER.fullmatch, fields)):
        try:
            return np.array([int(field) for field in fields], dtype=np.int64)
        except (OverflowError, ValueError) as error:
            raise UserError(f"{place}: received an integer of more than 64 bits") from error
    try:
        # float() takes 1_000, which is a name rather than a number.
        return np.array([float(field.replace("_", "x")) for field in fields])
    except ValueError:
        return text_array(fields)


_OPENED: Mapping[str, Callable[[Path], Mapping[str, Reader]]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": parquet_file,
}
