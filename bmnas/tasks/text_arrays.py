"""Strings as arrays, and what readers raise at damaged files in one line."""

from __future__ import annotations

import contextlib
import csv
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from bmnas.machine.errors import UserError, one_line
from bmnas.tasks.kinds import Array

#: What readers raise at a damaged, encrypted or made-up file. MemoryError comes of a header that
#: announces more than there can be.
DAMAGE = (
    OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, MemoryError, RuntimeError,
    SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error, csv.Error,
)  # fmt: skip

_WIDE = 64_000_000  # bytes that strings of one width may take together


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn what readers raise at a damaged file into a UserError that names ``place``."""
    try:
        yield
    except UnicodeDecodeError as error:
        wide = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise UserError(
            f"{place}: received byte {error.object[error.start]:#04x}, expected UTF-8: save it as "
            f"UTF-8, or convert it: iconv -f {'UTF-16' if wide else 'WINDOWS-1252'} -t UTF-8"
        ) from error
    except DAMAGE as error:
        message = one_line(error)
        # numpy says "allow_pickle=False" for objects in an array and for a file that is no array.
        if "pickle" in message or "Python objects" in message:
            raise UserError(
                f"{place}: received an array of Python objects, which is never loaded: save "
                "numbers or fixed-width strings"
            ) from error
        raise UserError(f"{place}: cannot be read, perhaps truncated: {message}") from error


def text_array(texts: Sequence[str]) -> Array:
    """Return strings (n,) of one width, or, where a long one would make all wide, of their own."""
    width = 4 * max(map(len, texts), default=1)
    if width * len(texts) <= _WIDE:
        return np.array(texts, dtype=np.str_)
    return np.array(texts, dtype=np.dtypes.StringDType())


def padded(lists: Sequence[Sequence[str]]) -> Array:
    """Return lists of strings as (n, longest), empty strings where one is shorter."""
    most = max(map(len, lists))
    return np.array([[*tags, *[""] * (most - len(tags))] for tags in lists], np.str_)
