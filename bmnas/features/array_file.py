"""Large ``.npy`` files, written row by row, by one process or by several at once."""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bmnas.machine.distribution.ranks import writer
from bmnas.tasks.task import Array

_CHECK_BYTES = 1 << 22


def create_files(paths: Iterable[Path]) -> None:
    """Make empty files, for several writers to open."""
    for path in paths:
        path.touch()


class ArrayWriter:
    """Writes a ``.npy`` file of a known shape and type, or the rows of it from ``start`` on.

    Not through a memory map: a disk that is full would end the process with SIGBUS, not with an
    exception. ``checksum`` is that of what was written.
    """

    def __init__(
        self,
        file: BinaryIO,
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic],
        start: int = 0,
    ) -> None:
        self._file = file
        self.checksum = 0
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": shape,
            },
        )
        if writer():
            self._write(header.getvalue())
        else:
            row = math.prod(shape[1:]) * dtype.itemsize
            file.seek(len(header.getvalue()) + start * row)

    def append(self, rows: Array) -> None:
        """Write the next rows."""
        self._write(rows.tobytes())

    def flush(self) -> None:
        """Wait for the disk, which belongs to the time that an extraction takes."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)


def checksum_of(path: Path) -> int:
    """Return the CRC-32 of a file's bytes."""
    checksum = 0
    with path.open("rb") as file:
        while content := file.read(_CHECK_BYTES):
            checksum = zlib.crc32(content, checksum)
    return checksum
