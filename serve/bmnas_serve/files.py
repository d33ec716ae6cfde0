"""Files of others: regular ones only, as opening a pipe would wait for its writer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from bmnas_serve.errors import BundleError


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, for reading; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; raises OSError."""
    with open_regular(path) as file:
        return file.read()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise BundleError in the place of an OSError that the block raises as it reads ``path``."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename or path}: cannot be read: {error.strerror}"
        raise BundleError(message) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal digits; raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
