"""What has to be known of a protobuf message before it is parsed.

The parser stops everything else until its end. It takes bytes as fast as memory does, but lists of
integers and small messages some milliseconds a MiB, of which a message can hold nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

from google.protobuf.message import DecodeError

from bmnas_serve.errors import FormatError

#: The messages within a message, by number of field.
Nested: TypeAlias = Mapping[int, "Nested"]

#: How many fields a message may have, with those of the messages within it.
_FIELDS = 4096
#: How many bytes of packed integers, together.
_INTEGERS = 2**21

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


def split(message: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """Return a message without the fields of this number, and their bytes, which are not copied.

    Raises DecodeError when it is no message, FormatError when it has too many fields.
    """
    rest: list[bytes] = []
    found: list[memoryview] = []
    view, kept = memoryview(message), 0
    for count, (begin, field, kind, start, end) in enumerate(_fields(message, 0, len(message))):
        if count == _FIELDS:
            raise _too_many()
        if (field, kind) == (number, _BYTES):
            rest.append(message[kept:begin])
            found.append(view[start:end])
            kept = end
    rest.append(message[kept:])
    return b"".join(rest), found


def check_parts(message: bytes, nested: Nested, packed: Collection[tuple[int, ...]]) -> None:
    """Raise FormatError for a message that would take long to parse, DecodeError for none.

    ``packed`` are the paths of the lists of integers.
    """
    fields = integers = 0
    waiting: list[tuple[tuple[int, ...], Nested, int, int]] = [((), nested, 0, len(message))]
    while waiting:
        path, within, start, end = waiting.pop()
        for _, field, kind, begin, stop in _fields(message, start, end):
            fields += 1
            if fields > _FIELDS:
                raise _too_many()
            if kind != _BYTES:
                continue
            if field in within:
                waiting.append(((*path, field), within[field], begin, stop))
            elif (*path, field) in packed:
                integers += stop - begin
    if integers > _INTEGERS:
        raise FormatError(
            f"the message: received {integers:,} bytes of integers as contents, expected at most"
            f" {_INTEGERS:,}: send tensors as raw_input_contents"
        )


def _too_many() -> FormatError:
    return FormatError(f"the message: has more than {_FIELDS:,} fields: send fewer at a time")


def _fields(message: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield where each field begins, its number and type, and where its bytes start and end."""
    while at < end:
        begin = at
        tag, at = (message[at], at + 1) if message[at] < 128 else _varint(message, at, end)
        kind, start = tag & 7, at
        if kind == _BYTES:
            short = at < end and message[at] < 128
            size, start = (message[at], at + 1) if short else _varint(message, at, end)
            at = start + size
        elif kind == _VARINT:
            _, at = _varint(message, at, end)
        elif kind in (_EIGHT, _FOUR):
            at += 8 if kind == _EIGHT else 4
        else:
            raise DecodeError(f"a field of type {kind}")
        if at > end:
            raise DecodeError("a field ends behind its message")
        yield begin, tag >> 3, kind, start, at


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the integer at this place, and the place behind it."""
    value = 0
    for shift, place in enumerate(range(at, min(end, at + 10))):
        byte = message[place]
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, place + 1
    raise DecodeError("an integer without an end")
