"""Large ``.npy`` files, written row by row."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bmnas.tasks.task import Array

_CHECK_BYTES = 1 << 22


class ArrayWriter:
    """Writes a ``.npy`` file of a known shape and type.

    Not through a memory map: a disk that is full would end the process with SIGBUS, not with an
    exception. ``checksum`` is that of what was written.
    """

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self._file = file
        self.checksum = 0
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(dtype)
        form = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, form)
        self._write(header.getvalue())

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
