"""Rows that are decoded from files, such as videos and folders of frames, by a pool of threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import Array
from bmnas.tasks.rows import Rows

T = TypeVar("T")

_MOST_WORKERS = 16


class Kept(Generic[T]):
    """What ``read`` makes of an item, kept as far as ``room`` bytes go, in each process anew."""

    def __init__(self, read: Callable[[T], Array], room: int) -> None:
        self._read, self._room, self._taken = read, room, 0
        self._kept: dict[T, Array] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self._read, self._room)

    def __call__(self, item: T) -> Array:
        """Return what ``read`` makes of ``item``, which is not to be changed."""
        found = self._kept.get(item)
        if found is not None:
            return found
        found = self._read(item)
        with self._lock:
            if item not in self._kept and self._taken + found.nbytes <= self._room:
                self._taken += found.nbytes
                self._kept[item] = found
        return found


class DecodedRows(Rows, Generic[T]):
    """Rows (rows, *axes) that ``decode`` makes of ``items``, one each.

    ``decode`` raises UserError, with file and place, for what it cannot read. It should leave
    Python's lock to others for most of its time, as Pillow and PyAV do. In memory are the rows that
    were asked for, what each of ``workers`` threads decodes, and what ``decode`` keeps, see
    ``Kept``. ``vary`` makes of an item, and of ``DRAWS`` numbers from 0 to 1, the row that training
    sees. ``whole``, by default ``decode``, returns the same row as ``decode``, having read all that
    ``vary`` may take.

    ``files`` returns the files that tell whether a row has changed. Their names below ``folder``,
    sizes and times of change are in the digest, and so is ``recipe``, which says how a row is made
    of them.
    """

    def __init__(
        self,
        items: Sequence[T],
        decode: Callable[[T], Array],
        axes: Sequence[int],
        dtype: npt.DTypeLike,
        *,
        folder: Path,
        files: Callable[[T], Sequence[Path]],
        recipe: str,
        vary: Callable[[T, Array], Array] | None = None,
        whole: Callable[[T], Array] | None = None,
    ) -> None:
        self.shape, self.dtype = (len(items), *axes), np.dtype(dtype)
        self._items, self._decode = items, decode
        self._folder, self._files, self._recipe = folder, files, recipe
        self._vary, self.varies, self._whole = vary, vary is not None, whole or decode
        self._workers = min(os.cpu_count() or 1, _MOST_WORKERS)

    def __getitem__(self, numbers: Array) -> Array:
        """Return the rows (n, *axes) of ``numbers`` (n,); one that is asked for twice is read once.

        Raises UserError at the first that cannot be decoded; what waits is then left.
        """
        unique, place = np.unique(numbers, return_inverse=True)
        rows = self._rows(unique, lambda place: self._decode(self._items[unique[place]]))
        return rows if np.array_equal(unique, numbers) else rows[place]

    def varied(self, numbers: Array, draws: Array) -> Array:
        """Return the rows (n, *axes) of ``numbers`` (n,) as training sees them, see ``vary``."""
        vary = self._vary
        if vary is None:
            return self[numbers]
        return self._rows(numbers, lambda n: vary(self._items[numbers[n]], draws[n]))

    def read_whole(self, numbers: Array) -> Array:
        """Return the rows (n, *axes) of ``numbers`` (n,), having read all, see ``whole``."""
        return self._rows(numbers, lambda n: self._whole(self._items[numbers[n]]))

    def _rows(self, numbers: Array, row: Callable[[int], Array]) -> Array:
        rows = np.empty((len(numbers), *self.shape[1:]), self.dtype)

        def fill(place: int) -> None:
            rows[place] = row(place)

        with ThreadPoolExecutor(self._workers) as pool:
            for _ in pool.map(fill, range(len(numbers))):
                pass
        return rows

    def digest(self, numbers: Array) -> str:
        """Return a digest of names, sizes and times of the files of the rows ``numbers`` (n,).

        Raises UserError for a file that is not there.
        """
        digest = hashlib.sha256(f"{self._recipe} {self.dtype} {self.shape[1:]}\n".encode())
        for number in numbers.tolist():
            files = self._files(self._items[number])
            digest.update(f"{len(files)}\n".encode())
            for file in files:
                try:
                    state = file.stat()
                except OSError as error:
                    raise UserError(f"{file}: cannot be read: {error.strerror}") from error
                name = file.relative_to(self._folder).as_posix()
                digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
        return digest.hexdigest()
