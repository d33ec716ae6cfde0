"""Named arrays from ``.npz``, ``.npy``, ``.jsonl`` and ``.csv`` files, none of them unpickled.

A column is a name and an array. Its name is the member of an ``.npz``, the stem of a ``.npy``,
the field of a ``.jsonl`` or the header of a ``.csv``; where two files have one of the same
name, ``file:name`` tells them apart.
"""

from __future__ import annotations

import csv
import json
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError, close, one_line
from bmnas.tasks.kinds import Array

_INTEGER = re.compile(r"[+-]?[0-9]+")
#: What numpy and zipfile raise at a damaged, encrypted or made-up file. MemoryError comes of a
#: header that announces more than there can be.
_DAMAGE = (
    OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, MemoryError, RuntimeError,
    SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_PICKLE = "an array of Python objects, which is never loaded: save numbers or fixed-width strings"


class Columns:
    """The columns of several files, each file opened now and each column read when asked for.

    Raises UserError when a file is missing, of an unknown kind, damaged or holds pickles.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_open(path) for path in paths]
        self._read: dict[tuple[str, bool], Array] = {}

    def get(self, name: str, *, text: bool = False) -> Array:
        """Return the column called ``name`` or ``file:name``, the same object each time.

        Raises UserError when there is none, or when several files have one of that name.
        """
        key = (name, text)
        if key not in self._read:
            file, column = self._find(name)
            self._read[key] = file.column(column, text=text)
        return self._read[key]

    def _find(self, name: str) -> tuple[_File, str]:
        choices = [(f"{f.path.name}:{n}", f, n) for f in self._files for n in f.names]
        found = [c for c in choices if name in (c[2], c[0])]
        if len(found) == 1:
            return found[0][1], found[0][2]
        if found:
            options = " or ".join(repr(c[0]) for c in found)
            raise UserError(f"received array {name!r}, which several files have: write {options}")
        # Whoever made the file may have put a line break into a name.
        names = [" ".join(c[2].split()) for c in choices]
        raise UserError(
            f"received array {name!r}, expected one of {', '.join(names)}{close(name, names)}"
        )


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


def _open(path: Path) -> _File:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"{path}: received a {path.suffix or 'nameless'} file, expected {_EXPECTED}"
        )
    try:
        return kind(path)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error


class _Npz:
    """The members of an ``.npz`` archive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # numpy takes whatever is not a zip file for a pickle; say what is wrong instead. Nor does
        # it close a damaged one, so that it gets to see only what zipfile can read.
        try:
            zipfile.ZipFile(path).close()
        except PermissionError:
            raise
        except _DAMAGE as error:
            raise UserError(f"{path}: not an .npz file, or a truncated one") from error
        try:
            with np.load(path, allow_pickle=False) as archive:
                self.names = tuple(archive.files)
        except _DAMAGE as error:
            raise _unreadable(str(path), error) from error

    def column(self, name: str, *, text: bool) -> Array:
        """Return a member; what is a number in the file stays one, ``text`` or not."""
        place = f"{self.path}: {name}"
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                array: Array | bytes = archive[name]
        except _DAMAGE as error:
            raise _unreadable(place, error) from error
        if isinstance(array, bytes):
            raise UserError(f"{place}: not an array: expected what numpy.savez writes")
        return array


class _Npy:
    """The one array of an ``.npy`` file, mapped into memory and not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = (path.stem,)
        try:
            self._array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except _DAMAGE as error:
            raise _unreadable(str(path), error) from error

    def column(self, name: str, *, text: bool) -> Array:
        """Return the array."""
        return self._array


class _Jsonl:
    """The fields of the objects in a file of one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[int] = []
        self._rows: list[dict[str, Any]] = []
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._lines.append(number)
                    self._rows.append(self._parse(line, number))
        if not self._rows:
            raise UserError(f"{path}: received an empty file, expected one JSON object a line")
        self.names = tuple(self._rows[0])

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path}: line {number}: not JSON: {one_line(error)}") from error
        if not isinstance(value, dict):
            raise UserError(
                f"{self.path}: line {number}: received {_show(value)}, expected an object"
            )
        return value

    def column(self, name: str, *, text: bool) -> Array:
        """Return the field of every line: strings, numbers, or lists of numbers of one length."""
        values = []
        for number, row in zip(self._lines, self._rows, strict=True):
            if name not in row:
                raise UserError(f"{self.path}: line {number}: expected {name!r}, which is missing")
            values.append(row[name])
        return self._array(name, values)

    def _array(self, name: str, values: list[Any]) -> Array:
        strings = isinstance(values[0], str)
        for number, value in zip(self._lines, values, strict=True):
            if isinstance(value, str) != strings or not (strings or _numeric(value)):
                expected = "a string" if strings else "a number or a list of numbers"
                place = f"{self.path}: line {number}: {name}"
                raise UserError(f"{place}: received {_show(value)}, expected {expected}")
        try:
            array = np.asarray(values)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{self.path}: {name}: lists of different lengths") from error
        if array.dtype == object:
            raise UserError(f"{self.path}: {name}: received an integer of more than 64 bits")
        return array


class _Csv:
    """The columns of a comma-separated file with a header line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            self.names = tuple(next(lines, ()))
            self._rows = []
            for row in lines:
                if len(row) == len(self.names):
                    self._rows.append(row)
                elif row:
                    raise UserError(
                        f"{path}: line {lines.line_num}: received {len(row)} fields, "
                        f"expected {len(self.names)} as in the header"
                    )
        if not self._rows:
            raise UserError(f"{path}: received no row, expected a header line and rows below it")
        if len(set(self.names)) < len(self.names):
            raise UserError(f"{path}: the header names a column twice: {', '.join(self.names)}")

    def column(self, name: str, *, text: bool) -> Array:
        """Return a column: int64 or float64 where every field is such a number, else strings."""
        position = self.names.index(name)
        fields = [row[position] for row in self._rows]
        if not text:
            if all(_INTEGER.fullmatch(field) for field in fields):
                try:
                    return np.array([int(field) for field in fields], dtype=np.int64)
                except (OverflowError, ValueError) as error:
                    raise UserError(
                        f"{self.path}: {name}: received an integer of more than 64 bits"
                    ) from error
            numbers = [_float(field) for field in fields]
            if None not in numbers:
                return np.array(numbers, dtype=np.float64)
        return np.array(fields, dtype=np.str_)


_File = _Npz | _Npy | _Jsonl | _Csv
_KINDS: Mapping[str, type[_File]] = {
    ".npz": _Npz,
    ".npy": _Npy,
    ".jsonl": _Jsonl,
    ".csv": _Csv,
}
_EXPECTED = "one of " + ", ".join(_KINDS)


def _numeric(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_numeric(item) for item in value)
    return isinstance(value, int | float)


def _float(field: str) -> float | None:
    try:
        return None if "_" in field else float(field)
    except ValueError:
        return None


def _unreadable(place: str, error: Exception) -> UserError:
    message = one_line(error)
    # numpy says "allow_pickle=False" for objects in an array and for a file that is no array.
    if "pickle" in message or "Python objects" in message:
        return UserError(f"{place}: received {_PICKLE}")
    return UserError(f"{place}: cannot be read, perhaps truncated: {message}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
