"""JSON from outside, read strictly and in time that grows with its length alone.

A large text is read in steps: whatever is in it, other threads wait for one step at most. The C
code of a whole ``json.loads`` would keep them out until its end.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bmnas_serve.turns import take_turns

#: What is read in one step, in bytes: less than half a millisecond. Smaller texts are one step.
_STEP = 16_384
#: A string may be that long, in bytes; it is read in one step too.
_LONGEST = 2**18
#: How deep lists and objects may be nested in a large text.
_DEPTH = 64
#: How many objects, lists in lists and strings a large text may have: each takes its own step.
_PARTS = 100_000
#: Where the members that hold arrays are known, a large text has few values beside them: for how
#: many parts each counts.
_BESIDE = 10
#: So many values in lists that hold arrays, but make none, count for a part.
_LOOSE = 10

#: So many numbers in a list, in one step, make an array.
_MANY = 8

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRUCTURE = (b'"', b"[", b"]", b"{", b"}")
_PLAIN_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+)"')
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,:"\[\]{}]+')


def parse_json(content: bytes | bytearray, *, arrays: str | None = None) -> Any:
    """Read one JSON value from UTF-8 text, without NaN and without keys that stand twice.

    In members called ``arrays``, a list of many numbers alone, or of truth values alone, also
    within other lists, is an array of 64 bits, or bool: as a list it takes four times the memory,
    and to give it back stops everything. Then few other values are taken. ValueError says in one
    line what is wrong.
    """
    if not content:
        raise ValueError("it is empty")
    if len(content) > _STEP:
        return _Reader(content, arrays).document()
    try:
        return _DECODER.decode(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} stands where a finite number is expected")


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        _add(members, name, value)
    return members


def _add(members: dict[str, Any], name: str, value: Any) -> None:
    if name in members:
        raise ValueError(f"the key {name[:80]!r} stands twice in one object")
    members[name] = value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_repetition)


class _Values:
    """The values of a list, as arrays for as long as they are many numbers and nothing else."""

    def __init__(self, *, arrays: bool) -> None:
        self.arrays = arrays
        self._pieces: list[NDArray[Any]] = []
        self._values: list[Any] = []

    def extend(self, found: list[Any]) -> int:
        """Add values; return how many of them make no array, with those that were one before."""
        if self.arrays and (self._pieces or (not self._values and len(found) >= _MANY)):
            piece = numbers_alone(found)
            if piece is not None and all(alike(piece, other) for other in self._pieces[:1]):
                self._pieces.append(piece)
                return 0
        unpacked = self._unpack()
        self._values.extend(found)
        return unpacked + len(found) if self.arrays else 0

    def append(self, value: Any) -> int:
        """Add one value, see ``extend``; it is not counted itself."""
        unpacked = self._unpack()
        self._values.append(value)
        return unpacked

    def all(self) -> list[Any] | NDArray[Any]:
        return np.concatenate(self._pieces) if self._pieces else self._values

    def _unpack(self) -> int:
        for piece in self._pieces:
            self._values.extend(piece.tolist())
        unpacked = sum(map(len, self._pieces))
        self._pieces = []
        return unpacked


def numbers_alone(found: list[Any]) -> NDArray[Any] | None:
    """Return numbers, or truth values, as an array; None for anything else and beyond 64 bits."""
    types = set(map(type, found))
    if types == {bool}:
        return np.array(found)
    if not types <= {int, float}:
        return None
    for dtype in (np.float64,) if float in types else (np.int64, np.uint64):
        with contextlib.suppress(OverflowError):
            return np.array(found, dtype)
    return None


def alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two arrays of ``numbers_alone`` can be joined without a change of values."""
    kinds = {one.dtype.kind, other.dtype.kind}
    return len(kinds) == 1 or kinds == {"i", "f"}


class _Reader:
    """A text and the place in it up to which it was read."""

    def __init__(self, text: bytes | bytearray, arrays: str | None) -> None:
        self._text = text
        self._arrays = arrays
        self._place = 0
        self._parts = 0
        self._weight = 1 if arrays is None else _BESIDE

    def document(self) -> Any:
        value = self._value(0, arrays=False)
        if self._next():
            raise self._wrong("nothing more")
        return value

    def _next(self) -> bytes | bytearray:
        """Return the next byte that is no space, empty at the end."""
        while (match := _SPACE.match(self._text, self._place, self._place + _STEP)) and match[0]:
            self._place = match.end()
        return self._text[self._place : self._place + 1]

    def _take(self, expected: bytes) -> bytes | bytearray:
        """Step over the next byte, which is one of ``expected``, and return it."""
        found = self._next()
        if not found or found not in expected:
            raise self._wrong(" or ".join(chr(byte) for byte in expected))
        self._place += 1
        return found

    def _wrong(self, expected: str) -> ValueError:
        found = self._text[self._place : self._place + 20].decode("ascii", "backslashreplace")
        received = repr(found) if found else "its end"
        return ValueError(f"received {received} at byte {self._place:,}, expected {expected}")

    def _value(self, depth: int, *, arrays: bool) -> Any:
        found = self._next()
        if found == b'"':
            return self._string()
        if found in (b"[", b"{"):
            if depth > _DEPTH:
                raise ValueError("it is nested too deeply")
            self._count(1 if arrays and found == b"[" else self._weight)
            return self._list(depth, arrays=arrays) if found == b"[" else self._object(depth)
        match = _SCALAR.match(self._text, self._place, self._place + _STEP)
        if not match:
            raise self._wrong("a value")
        value = self._scalars(match[0], b"", b"")
        self._place = match.end()
        return value

    def _count(self, parts: int) -> None:
        self._parts += parts
        if self._parts > _PARTS:
            others = "" if self._weight == 1 else f", or {_PARTS // self._weight:,} other values"
            raise ValueError(
                f"it has more than {_PARTS:,} objects, lists and strings{others}: send fewer at a"
                " time, and numbers in flat lists"
            )

    def _string(self) -> str:
        self._count(self._weight)
        plain = _PLAIN_STRING.match(self._text, self._place, self._place + _LONGEST)
        if plain:
            self._place = plain.end()
            return plain[1].decode("utf-8")
        match = _STRING.match(self._text, self._place, self._place + _LONGEST)
        if not match:
            raise self._wrong(f"a string in quotes of at most {_LONGEST:,} bytes")
        self._place = match.end()
        return str(_DECODER.decode(match[0].decode("utf-8")))

    def _object(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        self._take(b"{")
        if self._next() == b"}":
            self._place += 1
            return members
        while True:
            take_turns()
            if self._next() != b'"':
                raise self._wrong("a key in quotes")
            name = self._string()
            self._take(b":")
            _add(members, name, self._value(depth + 1, arrays=name == self._arrays))
            if self._take(b",}") == b"}":
                return members

    def _list(self, depth: int, *, arrays: bool) -> list[Any] | NDArray[Any]:
        """Read a list; the values in it that are no list, object or string a step at a time."""
        values = _Values(arrays=arrays)
        self._take(b"[")
        after = b""  # what stands before the place: nothing yet, a value or a comma
        while True:
            take_turns()
            run, end = self._run()
            if end == b"]":
                self._extend(values, run, after, closed=True)
                self._place += len(run) + 1
                return values.all()
            plain, comma, rest = run.rpartition(b",")
            if rest.strip(b" \t\r\n") and (end or not comma):
                self._place += len(plain) + len(comma)
                raise self._wrong(f"a value, a comma or ] within {_STEP:,} bytes")
            if comma:
                self._extend(values, plain, after, closed=False)
                after = b","
            self._place += len(plain) + len(comma)
            if not end:
                self._place += 0 if comma else len(run)
                continue
            self._place += len(rest)
            if after == b"0":
                raise self._wrong(", or ]")
            self._count(values.append(self._value(depth + 1, arrays=arrays)) // _LOOSE)
            after = b"0"

    def _run(self) -> tuple[bytes | bytearray, bytes | bytearray]:
        """Return the plain values ahead, and the byte that ends them; empty where more follow."""
        # Faster than one pattern for all of them, which takes each byte in turn.
        until = self._place + _STEP
        for byte in _STRUCTURE:
            found = self._text.find(byte, self._place, until)
            until = until if found < 0 else found
        run = self._text[self._place : until]
        end = self._text[self._place + len(run) : self._place + len(run) + 1]
        if not end:
            self._place += len(run)
            raise self._wrong("the end of a list")
        return run, end if end in _STRUCTURE else b""

    def _extend(
        self, values: _Values, plain: bytes | bytearray, after: bytes, *, closed: bool
    ) -> None:
        """Add the values of ``plain``, which stand after a value (``0``), a comma or nothing."""
        found = self._scalars(plain, b"[0" if after == b"0" else b"[", b"]")
        if not found and (after == b"," or not closed):
            raise self._wrong("a value")
        if self._arrays is not None and not values.arrays:
            self._count(self._weight * len(found))
        self._count(values.extend(found[1:] if after == b"0" else found) // _LOOSE)

    def _scalars(self, plain: bytes | bytearray, before: bytes, behind: bytes) -> Any:
        try:
            return orjson.loads(before + plain + behind)
        except orjson.JSONDecodeError as error:
            self._place += min(max(0, error.pos - len(before)), len(plain))
            raise self._wrong(f"JSON ({error.msg.partition(':')[0]})") from error
