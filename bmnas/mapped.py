"""Arrays that are read from files as they are needed, in a bounded part of memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bmnas.cache_dtype import file_dtype, from_file
from bmnas.errors import UserError

#: How many bytes of mapped files may lie in a process's memory.
LIMIT = 1 << 30
_AROUND = 1 << 16  # what Linux maps around a page that is asked for


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


class Pages:
    """Hands the pages of mapped files back before those that were read exceed ``limit`` bytes.

    What is read again then comes from the system's own cache, or from the disc. Files that are
    smaller than ``limit`` altogether stay.
    """

    def __init__(self, maps: Sequence[mmap.mmap], limit: int = LIMIT) -> None:
        self._maps = maps
        self._limit = limit
        self._whole = sum(len(m) for m in maps)
        self._touched = 0

    def read(self, rows: int, row_bytes: int) -> None:
        """Take note of ``rows`` rows, of ``row_bytes`` in all files together, that were read."""
        if self._whole <= self._limit:
            return
        self._touched += rows * (row_bytes + _AROUND * len(self._maps))
        if self._touched > self._limit:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
