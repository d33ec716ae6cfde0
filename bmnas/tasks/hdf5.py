"""Data sets of HDF5 files, by h5py: checked when opened, read row by row."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError, close, few
from bmnas.tasks.kinds import Array
from bmnas.tasks.rows import Rows
from bmnas.tasks.text_arrays import reading

_DIGEST_ROWS = 64


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an HDF5 file to read; raises UserError where it is missing or damaged."""
    import h5py

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(str(path)):
        file = h5py.File(path, "r")
    with file:
        yield file


def read_dataset(path: Path, name: str, *, text: bool = False) -> Array:
    """Return the whole data set ``name`` of the file ``path``; with ``text``, as strings.

    Raises UserError that names file and data set when it is missing or damaged, or no text.
    """
    with opened(path) as file:
        found = _dataset(file, path, name)
        with reading(f"{path}: {name}"):
            array: Array = (found.asstr() if text else found)[()]
    return array.astype(np.str_) if text else array


def read_attribute(path: Path, name: str, attribute: str) -> Any:
    """Return an attribute of the data set ``name``, None where it has none of that name."""
    with opened(path) as file, reading(f"{path}: {name}: {attribute}"):
        return _dataset(file, path, name).attrs.get(attribute)


class HDF5Rows(Rows):
    """The rows of the data set ``name`` in the file ``path``, each as ``convert`` returns it.

    ``convert`` turns a stored row into one of the modality, the same shape and type for all. One
    stored row is in memory at a time. Raises UserError when there is no such data set.
    """

    def __init__(
        self, path: Path, name: str, convert: Callable[[Array], Array] = np.asarray
    ) -> None:
        self.path, self.name, self._convert = path, name, convert
        with opened(path) as file:
            stored = _dataset(file, path, name)
            self.stored_shape: tuple[int, ...] = stored.shape
            self.stored_dtype: np.dtype[Any] = stored.dtype
        row = convert(np.zeros(self.stored_shape[1:], self.stored_dtype))
        self.shape, self.dtype = (*self.stored_shape[:1], *row.shape), row.dtype

    def __getitem__(self, numbers: Array) -> Array:
        """Return the rows (n, *axes) of ``numbers`` (n,); raises UserError for a damaged one."""
        rows = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        with opened(self.path) as file:
            stored = _dataset(file, self.path, self.name)
            for place, number in enumerate(numbers.tolist()):
                with reading(f"{self.path}: {self.name}: row {number}"):
                    rows[place] = self._convert(stored[number])
        return rows

    def digest(self, numbers: Array) -> str:
        """Return a digest of ``numbers`` (n,) and of the content of some of these rows."""
        some = numbers[np.linspace(0, len(numbers) - 1, _DIGEST_ROWS).astype(np.int64)]
        form = f"{self.name} {self.dtype} {self.shape}\n".encode()
        digest = hashlib.sha256(form + numbers.astype("<i8").tobytes())
        digest.update(self[np.unique(some)].tobytes())
        return digest.hexdigest()


def _dataset(file: Any, path: Path, name: str) -> Any:
    import h5py

    with reading(f"{path}: {name}"):
        found, names = file.get(name), list(file)
    if isinstance(found, h5py.Dataset) and found.ndim:
        return found
    raise UserError(
        f"{path}: received {few(names, 12) or 'nothing'}, expected a data set {name!r} with rows"
        f"{close(name, names)}"
    )
