"""Arrays that are read from files as they are needed, in a bounded part of memory."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bmnas.features.dtype import file_dtype, from_file
from bmnas.machine.errors import UserError

#: How many bytes of mapped files may lie in a process's memory.
LIMIT = 1 << 30
_AROUND = 1 << 16  # what a system maps around a page that is asked for, where it does not tell
_ACCOUNT = Path("/proc/self/statm")


def map_array(
    path: Path, shape: tuple[int, ...], dtype: str = "float32"
) -> tuple[torch.Tensor, mmap.mmap]:
    """Return the array of a ``.npy`` file of the feature cache, and what it is mapped by.

    ``dtype`` is the cache's, see ``cache_dtype``. Raises UserError for another shape or type.
    """
    expected = file_dtype(dtype)
    # Copy on write: torch refuses read-only memory, and nothing here ever writes.
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.shape != shape or array.dtype != expected:
        raise UserError(
            f"{path}: received {array.dtype} {array.shape}, expected {expected} {shape}: damaged "
            "feature cache; delete its folder, it will be made again"
        )
    mapped = array.base
    if not isinstance(mapped, mmap.mmap):
        raise TypeError(f"expected a mapped file, received {type(mapped).__name__}")
    return from_file(array, dtype), mapped


class MappedFile(NamedTuple):
    """A ``.npy`` file of the feature cache as ``map_array`` takes it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str = "float32"


def map_arrays(files: Mapping[str, MappedFile]) -> tuple[dict[str, torch.Tensor], Pages]:
    """Return the arrays of ``files`` by name, and what bounds their memory."""
    mapped = {name: map_array(*file) for name, file in files.items()}
    arrays = {name: array for name, (array, _) in mapped.items()}
    return arrays, Pages([mapping for _, mapping in mapped.values()], files=files)


class Pages:
    """Hands the pages of mapped files back once those in memory exceed ``limit`` bytes.

    What is read again then comes from the system's own cache, or from the disk. Files that are
    smaller than ``limit`` altogether stay. ``files`` says what to give ``map_array`` for the arrays
    by name, where another process is to map them too.
    """

    def __init__(
        self,
        maps: Sequence[mmap.mmap],
        limit: int = LIMIT,
        files: Mapping[str, MappedFile] | None = None,
    ) -> None:
        self.files = files or {}
        self._maps = maps
        self._limit = limit
        self._whole = sum(len(m) for m in maps)
        self._read = 0
        self._before = resident_file_bytes()

    def read(self, rows: int, row_bytes: int) -> None:
        """Take note of ``rows`` rows, of ``row_bytes`` in one file, that were read."""
        if self._whole <= self._limit:
            return
        now = resident_file_bytes()
        if now is None or self._before is None:
            self._read += rows * (row_bytes + _AROUND)
        else:
            # A page that is asked for may bring a megabyte with it, which only the system knows.
            self._read = now - self._before
        if self._read > self._limit:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._read, self._before = 0, resident_file_bytes()


def resident_file_bytes() -> int | None:
    """Return how many bytes of mapped files lie in this process's memory, None if unknown."""
    try:
        pages = int(_ACCOUNT.read_text(encoding="ascii").split()[2])
    except (OSError, ValueError, IndexError):
        return None
    return pages * mmap.PAGESIZE
