"""Regions that a detector has found, from its files: one ``.npz`` an image, read when asked for.

The layout is that of the features of bottom-up attention (Anderson et al., 2018) as MMnas reads
them: ``x`` (D, k), ``bbox`` (k, 4) in pixels, of k regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.columns import read_npz
from bmnas.tasks.decoded import DecodedRows
from bmnas.tasks.kinds import Array


def load_regions(folder: Path, names: Sequence[str], *, most: int = 100) -> DecodedRows[Path]:
    """Return rows (len(names), most, D + 4) float32 of the files ``names`` in ``folder``.

    Further regions of an image are left out, rows of 0 fill up. D is that of the first file. Raises
    UserError for a file that is missing, and when a row is read, for one of another layout.
    """
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected the regions of an image")
    columns = _regions(paths[0]).shape[1]

    def decode(path: Path) -> Array:
        found = _regions(path)[:most]
        if found.shape[1] != columns:
            raise UserError(
                f"{path}: received {found.shape[1] - 4} features a region, expected {columns - 4} "
                f"as in {paths[0].name}"
            )
        return np.pad(found, ((0, most - len(found)), (0, 0)))

    return DecodedRows(
        paths,
        decode,
        (most, columns),
        np.float32,
        folder=folder,
        files=lambda path: [path],
        recipe=f"regions {most}",
    )


def _regions(path: Path) -> Array:
    """Return the regions (k, D + 4) of a file."""
    x, boxes = read_npz(path, ("x", "bbox")).values()
    if x.ndim != 2 or boxes.shape != (x.shape[1], 4):
        raise UserError(
            f"{path}: received x {x.shape} and bbox {boxes.shape}, expected (D, k) and (k, 4)"
        )
    return np.concatenate([x.T, boxes], axis=1).astype(np.float32)
