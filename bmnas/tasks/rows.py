"""Rows of a modality that are read when they are asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import Array

_PIECE_BYTES = 32_000_000
#: How many numbers from 0 to 1 choose what training sees of a row.
DRAWS = 4


class Rows(ABC):
    """What ``Modality.data`` may be in place of an array: media that are too large for memory.

    ``shape`` is (rows, *axes) and ``dtype`` that of the rows. With ``varies``, training sees other
    parts of a row each time, see ``varied``. Nothing is open between two calls, so that other
    processes may read the same rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    varies = False
    #: What to do about a row that cannot be read.
    remedy = "bmnas check finds all such files, and with --leave-out leaves their samples out"

    @property
    def ndim(self) -> int:
        """The number of axes, the rows counted."""
        return len(self.shape)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, numbers: Array) -> Array:
        """Return the rows (n, *axes) of ``numbers`` (n,), in that order.

        Raises UserError, with file and place, for a row that cannot be read.
        """

    def varied(self, numbers: Array, draws: Array) -> Array:
        """Return the rows (n, *axes) of ``numbers`` (n,) as training sees them.

        ``draws`` (n, DRAWS), from 0 to 1, choose what of them: the same of all modalities of a
        sample, if they wish.
        """
        return self[numbers]

    def read_whole(self, numbers: Array) -> Array:
        """Return the rows (n, *axes) of ``numbers`` (n,), having read all that training may see."""
        return self[numbers]

    @abstractmethod
    def digest(self, numbers: Array) -> str:
        """Return a digest of the rows ``numbers`` (n,) that need not read all of them.

        It changes with the rows, and not with the folder that their files lie in: by it a run knows
        the backbones and features that were made of the same data.
        """


#: What ``Modality.data`` is.
Data = Array | Rows


def piece_rows(data: Data) -> int:
    """Return how many rows are at most 32 MB; 1 where a single one is more."""
    row_bytes = math.prod(data.shape[1:]) * data.dtype.itemsize
    return max(_PIECE_BYTES // max(row_bytes, 1), 1)


def read_rows(data: Data, numbers: Array, draws: Array | None = None) -> Array:
    """Return the rows (n, *axes) of ``numbers`` (n,); with ``draws`` (n, DRAWS) as training does.

    Raises UserError, which says how to find and leave out all that cannot be read.
    """
    if not isinstance(data, Rows):
        return data[numbers]
    try:
        return data[numbers] if draws is None else data.varied(numbers, draws)
    except UserError as error:
        raise UserError(f"{error}: {data.remedy}") from error


def pieces(data: Data, numbers: Array) -> Iterator[Array]:
    """Yield stretches of ``numbers`` (n,) whose rows are at most 32 MB, or a single row."""
    step = piece_rows(data)
    for start in range(0, len(numbers), step):
        yield numbers[start : start + step]
