"""The door between tensors and C: every kernel of ``source/`` is called by its name.

Every tensor is float32 and contiguous, but for scratch in float64. Forward and backward draw the
same dropout masks, from a seed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bmnas.features.layers import drop_threshold
from bmnas.spaces.cells.native.build import kernels

BLOCK = 64  # as in common.h
CHUNKS = 16  # partial sums of a backward pass, whatever the number of threads

#: What C takes: integers are int64, a None is NULL, several tensors an array of pointers.
Argument = Tensor | Sequence[Tensor] | int | float | None


def call(name: str, *arguments: Argument) -> None:
    """Run a kernel; its last argument, the number of threads, is added."""
    library = kernels()
    if library is None:
        raise RuntimeError("the kernels are not available; see native.describe()")
    getattr(library, name)(*map(_to_c, arguments), ctypes.c_int64(torch.get_num_threads()))


def _to_c(argument: Argument) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if argument is None:
        return ctypes.c_void_p(None)
    return (ctypes.c_void_p * len(argument))(*(x.data_ptr() for x in argument))


class Drop(NamedTuple):
    """A dropout as the kernels take it: drop where a random byte is below ``threshold``."""

    threshold: int
    factor: float
    seed: int

    @classmethod
    def of(cls, p: float) -> Drop:
        """Return a dropout of probability ``p`` with a seed from torch's generator."""
        threshold, factor = drop_threshold(p)
        return cls(threshold, factor, draw_seed() if threshold else 0)


def draw_seed() -> int:
    """Return 63 random bits of torch's generator."""
    return int(torch.empty((), dtype=torch.int64).random_())
