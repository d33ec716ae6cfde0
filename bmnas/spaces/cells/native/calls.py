"""The kernels' functions and structs, as in ``source/``: the doors between tensors and C.

A kernel works for several members, supernets of one shape whose tensors lie one after another; of
a single supernet there is one. Every tensor is float32 and contiguous. Forward and backward draw
the same masks, from a seed.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_int64, c_uint32, c_uint64
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bmnas.features.layers import drop_threshold
from bmnas.spaces.cells.native.build import kernels

BLOCK = 64  # as in common.h
CHUNKS = 16  # partial sums of a backward pass, whatever the number of threads

_pointer = ctypes.c_void_p


class NormStruct(Structure):
    """A BatchNorm in training, with the statistics of the batch."""

    _fields_ = (
        *((name, _pointer) for name in ("weight", "bias", "running_mean", "running_var")),
        *((name, c_float) for name in ("momentum", "eps")),
        *((name, _pointer) for name in ("mean", "rstd")),
    )

    @classmethod
    def of(cls, norm: nn.BatchNorm1d, mean: Tensor, rstd: Tensor) -> NormStruct:
        """Return the struct of ``norm``, which must keep running statistics."""
        if norm.running_mean is None or norm.running_var is None or norm.momentum is None:
            raise ValueError("expected a BatchNorm with running statistics and a momentum")
        return cls(
            address(norm.weight),
            address(norm.bias),
            address(norm.running_mean),
            address(norm.running_var),
            norm.momentum,
            norm.eps,
            address(mean),
            address(rstd),
        )


class StepStruct(Structure):
    """A relaxed step, of several members alike."""

    _fields_ = (
        *((name, c_int64) for name in ("members", "batch", "length", "channels")),
        ("gamma", _pointer),
        ("norm", NormStruct),
        *((name, _pointer) for name in ("weight", "bias")),
        ("eps", c_float),
        *((name, c_uint32) for name in ("threshold", "attention_threshold")),
        *((name, c_float) for name in ("factor", "attention_factor")),
        ("seed", c_uint64),
        ("threads", c_int),
    )


class ReshapeStruct(Structure):
    """What the kernels of reshaping have in common, forward and backward."""

    _fields_ = (
        *(
            (name, c_int64)
            for name in ("features", "members", "rows", "channels", "stride", "cells")
        ),
        ("mix", _pointer),
        ("norm", NormStruct),
        ("threshold", c_uint32),
        ("factor", c_float),
        ("seed", c_uint64),
        ("threads", c_int),
    )


_NORM, _STEP, _RESHAPE = POINTER(NormStruct), POINTER(StepStruct), POINTER(ReshapeStruct)
_POINTERS = POINTER(_pointer)
_DROP = [c_uint32, c_float, c_uint64]  # threshold, factor, seed
_ARGUMENTS: dict[str, list[Any]] = {
    "reshape_statistics": [_RESHAPE, *[c_int64] * 2, _pointer],
    "reshape_forward": [_RESHAPE, *[_pointer] * 3],
    "reshape_backward": [_RESHAPE, *[c_int64] * 2, *[_pointer] * 7],
    "mixture_forward": [_STEP, *[_pointer] * 7],
    "mixture_backward": [_STEP, c_int64, *[_pointer] * 11],
    "output_forward": [
        *[c_int64] * 4,
        *[_pointer] * 2,
        _NORM,
        *[_pointer] * 2,
        c_float,
        *_DROP,
        *[_pointer] * 4,
        c_int,
    ],
    "output_backward": [
        *[c_int64] * 5,
        *[_pointer] * 3,
        _NORM,
        *[_pointer] * 3,
        *_DROP,
        *[_pointer] * 3,
        c_int,
    ],
    "edges_forward": [*[c_int64] * 3, _POINTERS, *[_pointer] * 2, c_int],
    "edges_backward": [*[c_int64] * 3, _POINTERS, *[_pointer] * 2, _POINTERS, _pointer, c_int],
}


@functools.cache
def library() -> ctypes.CDLL:
    """Return the kernels with their interface declared."""
    found = kernels()
    if found is None:
        raise RuntimeError("the kernels are not available; see native.describe()")
    for name, arguments in _ARGUMENTS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None
    return found


def address(x: Tensor) -> int:
    """Return where the data of a contiguous float32 (or float64 scratch) tensor lies."""
    return x.data_ptr()


def addresses(nodes: Sequence[Tensor]) -> Any:
    """Return an array of the addresses of ``nodes``."""
    return (_pointer * len(nodes))(*map(address, nodes))


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
