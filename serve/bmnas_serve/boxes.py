"""Boxes in a picture as it is, and in the row that is made of it.

A box has the corners x1, y1, x2, y2, the first and last pixel that it covers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.sources import Pictures

Boxes = NDArray[np.float64]


def in_rows(
    pictures: Pictures, boxes: NDArray[np.generic], sizes: Sequence[tuple[int, int]]
) -> Boxes:
    """Return boxes (n, 4) of pictures of these ``sizes`` (height, width) as rows show them.

    What a row does not show is cut off.
    """
    scale, shift = _places(pictures, sizes)
    return _within(_edges(boxes) * scale + shift, [(pictures.height, pictures.width)])


def in_pictures(
    pictures: Pictures, boxes: NDArray[np.generic], sizes: Sequence[tuple[int, int]]
) -> Boxes:
    """Return boxes (n, 4) of rows in pictures of these ``sizes`` (height, width): the way back."""
    scale, shift = _places(pictures, sizes)
    return _within((_edges(boxes) - shift) / scale, sizes)


def _places(pictures: Pictures, sizes: Sequence[tuple[int, int]]) -> tuple[Boxes, Boxes]:
    """Return by what coordinates are multiplied and what is added, (n, 4) each."""
    found = np.array([pictures.place(height, width) for height, width in sizes], np.float64)
    scale, shift = found.reshape(-1, 2, 2).swapaxes(0, 1)
    return np.tile(scale, 2), np.tile(shift, 2)


def _edges(boxes: NDArray[np.generic]) -> Boxes:
    """Return where boxes begin and end: the last pixel ends one further."""
    edges: Boxes = np.add(boxes, (0.0, 0.0, 1.0, 1.0), dtype=np.float64)
    return edges


def _within(edges: Boxes, sizes: Sequence[tuple[int, int]]) -> Boxes:
    last = np.tile(np.array(sizes, np.float64)[:, ::-1], 2) - 1
    found: Boxes = np.clip(edges - (0, 0, 1, 1), 0, last)
    return found
