"""The types that the feature cache can have, and how its files hold them.

A search computes in float32 whatever the cache has; half precision halves what a cache takes of
disk, memory and copies. bfloat16 keeps the range of float32, float16 three bits more of each
number. NumPy has no bfloat16: its files hold the bits as uint16, and the manifest says what they
are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bmnas.machine.errors import UserError
from bmnas.tasks.task import Array

TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FILES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "bool": np.bool_,  # the masks of tokens
}


def file_dtype(dtype: str) -> np.dtype[np.generic]:
    """Return the NumPy type of the files of a cache of ``dtype``."""
    return np.dtype(_FILES[dtype])


def to_file(x: Tensor, dtype: str, name: str) -> Array:
    """Return the feature ``name`` (rows, L, C_raw) on the CPU as files of ``dtype`` hold it.

    Raises UserError for a number that ``dtype`` has no room for.
    """
    if dtype == "bool":
        return x.numpy()
    rounded = x.to(TORCH[dtype])
    if dtype != "float32" and bool((rounded.isinf() & x.isfinite()).any()):
        largest = float(x[x.isfinite()].abs().max())
        raise UserError(
            f"--cache-dtype {dtype}: feature {name} has numbers up to {largest:.6g}, expected at "
            f"most {torch.finfo(TORCH[dtype]).max:.6g}: give another type"
        )
    if dtype == "bfloat16":
        rounded = rounded.view(torch.uint16)
    return rounded.numpy()


def from_file(array: Array, dtype: str) -> Tensor:
    """Return an array of a file of a cache of ``dtype`` as a tensor over the same memory."""
    tensor = torch.from_numpy(array)
    return tensor.view(TORCH[dtype]) if dtype == "bfloat16" else tensor
