"""The files of the feature cache: ``.npy``, written batch by batch and mapped into memory.

A search computes in float32 whatever the files hold; half precision halves what a cache takes of
disk, memory and copies. bfloat16 keeps the range of float32, float16 three bits more of each
number. NumPy has no bfloat16: its files hold the bits as uint16, and the manifest says what they
are.
"""

from __future__ import annotations

import io
import mmap
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bmnas.machine.errors import UserError
from bmnas.tasks.task import Array

#: Of each type of a cache, what torch and what NumPy has for it; bool is for the masks of tokens.
_TYPES: dict[str, tuple[torch.dtype, np.dtype[Any]]] = {
    "float32": (torch.float32, np.dtype(np.float32)),
    "float16": (torch.float16, np.dtype(np.float16)),
    "bfloat16": (torch.bfloat16, np.dtype(np.uint16)),
    "bool": (torch.bool, np.dtype(np.bool_)),
}
#: How many bytes of mapped files may lie in a process's memory.
LIMIT = 1 << 30
_AROUND = 1 << 16  # what a system maps around a page that is asked for, where it does not tell
_ACCOUNT = Path("/proc/self/statm")
_CHUNK_BYTES = 1 << 22
_CHUNK_ROWS = 1024
AGAIN = "delete its folder, it will be made again"


def cache_bytes(rows: int, length: int, channels: int, dtype: str) -> int:
    """Return the size of one feature in the cache, its header of some dozen bytes left out."""
    return rows * length * channels * _TYPES[dtype][1].itemsize


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what a ``.npy`` file begins with; rows as of ``to_file`` follow.

    Not written through a memory map: a disk that is full would end the process with SIGBUS.
    """
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(_TYPES[dtype][1])
    form = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, form)
    return header.getvalue()


def to_file(x: Tensor, dtype: str, name: str) -> Array:
    """Return the feature ``name`` (rows, L, C_raw) on the CPU as files of ``dtype`` hold it.

    Raises UserError for a number that ``dtype`` has no room for.
    """
    rounded = x.to(_TYPES[dtype][0])
    if dtype.endswith("float16") and bool((rounded.isinf() & x.isfinite()).any()):
        largest = float(x[x.isfinite()].abs().max())
        raise UserError(
            f"--cache-dtype {dtype}: feature {name} has numbers up to {largest:.6g}, expected at "
            f"most {torch.finfo(rounded.dtype).max:.6g}: give another type"
        )
    return (rounded.view(torch.uint16) if dtype == "bfloat16" else rounded).numpy()


def checksum_of(path: Path) -> int:
    """Return the CRC-32 of a file's bytes."""
    checksum = 0
    with path.open("rb") as file:
        while content := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(content, checksum)
    return checksum


class MappedFile(NamedTuple):
    """A ``.npy`` file of the feature cache, and what it must hold."""

    path: Path
    shape: tuple[int, ...]
    dtype: str = "float32"

    def map(self) -> tuple[Tensor, mmap.mmap]:
        """Return the array, and what it is mapped by; raises UserError where it is another."""
        expected = _TYPES[self.dtype][1]
        # Copy on write: torch refuses read-only memory, and nothing here ever writes.
        array = np.load(self.path, mmap_mode="c", allow_pickle=False)
        if array.shape != self.shape or array.dtype != expected:
            raise UserError(
                f"{self.path}: received {array.dtype} {array.shape}, expected {expected} "
                f"{self.shape}: damaged feature cache; {AGAIN}"
            )
        mapped = array.base
        assert isinstance(mapped, mmap.mmap)
        return torch.from_numpy(array).view(_TYPES[self.dtype][0]), mapped


class MappedArrays(dict[str, Tensor]):
    """The arrays of ``files`` by name; at most ``limit`` bytes and one batch of them in memory.

    Whoever reads rows says so with ``read``. Pages that were handed back come again from the
    system's own cache or from the disk. Files that are smaller than ``limit`` altogether stay. In
    another process, which gets them by pickle, the files are mapped anew.
    """

    def __init__(self, files: Mapping[str, MappedFile], limit: int = LIMIT) -> None:
        mapped = {name: file.map() for name, file in files.items()}
        super().__init__({name: array for name, (array, _) in mapped.items()})
        self._files, self._limit = files, limit
        self._maps = [mapping for _, mapping in mapped.values()]
        self._whole = sum(map(len, self._maps))
        self._read = 0
        self._before = _resident_file_bytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedArrays, (self._files, self._limit)

    def read(self, rows: int, row_bytes: int) -> None:
        """Take note of ``rows`` rows, of ``row_bytes`` in one file, that were read."""
        if self._whole <= self._limit:
            return
        now = _resident_file_bytes()
        if now is None or self._before is None:
            self._read += rows * (row_bytes + _AROUND)
        else:
            # A page that is asked for may bring a megabyte with it, which only the system knows.
            self._read = now - self._before
        if self._read > self._limit:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._read, self._before = 0, _resident_file_bytes()


def note_read(arrays: Mapping[str, Tensor], rows: Tensor) -> None:
    """Say that ``rows`` were read, in case ``arrays`` are mapped files."""
    if isinstance(arrays, MappedArrays) and len(rows):
        arrays.read(len(rows), rows[0].nbytes)


def moved(
    arrays: Mapping[str, Tensor], names: Iterable[str], device: torch.device
) -> dict[str, Tensor]:
    """Return the arrays ``names`` copied to ``device``, chunk by chunk."""
    found = {name: torch.empty_like(arrays[name], device=device) for name in names}
    for name, target in found.items():
        chunks = zip(target.split(_CHUNK_ROWS), arrays[name].split(_CHUNK_ROWS), strict=True)
        for copy, part in chunks:
            copy.copy_(part)
            note_read(arrays, part)
    return found


def _resident_file_bytes() -> int | None:
    """Return how many bytes of mapped files lie in this process's memory, None if unknown."""
    try:
        return int(_ACCOUNT.read_text(encoding="ascii").split()[2]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return None
