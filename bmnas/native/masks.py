"""The kernels' dropout masks, computed with PyTorch: several ranks draw what one process would.

Legend: B batch, L length, C channels, R = B*L rows, all of this rank's share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bmnas.native.build import kernels
from bmnas.native.calls import Drop
from bmnas.parallel.share import Share, current

_32_BITS = 0xFFFFFFFF
_GOLDEN_64 = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed number
_GOLDEN_32 = 0x9E3779B9


def kernels_share(x: Tensor) -> Share | None:
    """Return the share of several ranks where one process would have run the kernels on ``x``."""
    share = current()
    if share is None or x.device.type != "cpu" or x.dtype != torch.float32 or kernels() is None:
        return None
    return share


def rows_mask(share: Share, x: Tensor, p: float, groups: int = 1) -> tuple[Tensor, float]:
    """Return ones and zeros for ``x`` (R, groups*C), and the factor for what is kept.

    The kernels number the rows of the first group before those of the second.
    """
    drop = Drop.of(p)
    rows, total = _rows(share, len(x))
    numbers = rows.unsqueeze(1) + total * torch.arange(groups)
    mask = kept(drop.seed, numbers, x.shape[1] // groups, 0, drop.threshold)
    return mask.flatten(1), drop.factor


def step_masks(share: Share, t: Tensor, p: float, attention_p: float) -> list[tuple[Tensor, float]]:
    """Return masks (B, L, C) and factors of linear_glu, concat_fc and attention for ``t``."""
    drop, attention_drop = Drop.of(p), Drop.of(attention_p)
    seed = drop.seed ^ attention_drop.seed
    rows, _ = _rows(share, t.shape[0] * t.shape[1])
    return [
        (kept(seed, rows, t.shape[-1], byte, chosen.threshold).view(t.shape), chosen.factor)
        for byte, chosen in enumerate((drop, drop, attention_drop))
    ]


def kept(seed: int, rows: Tensor, channels: int, byte: int, threshold: int) -> Tensor:
    """Return float32 ones and zeros (*rows, C) as the kernels draw them for the given rows."""
    mixed = (rows ^ seed) * _GOLDEN_64
    of_row = _scramble(mixed >> 32 & _32_BITS) ^ (seed & _32_BITS)
    column = torch.arange(channels) * _GOLDEN_32
    bits = _scramble(of_row.unsqueeze(-1) + column & _32_BITS)
    return (bits >> 8 * byte & 255).ge(threshold).float()


def _scramble(x: Tensor) -> Tensor:
    # MurmurHash3's finaliser, in 64 bits of which the lower half counts.
    x = x ^ x >> 16
    x = x * 0x85EBCA6B & _32_BITS
    x = x ^ x >> 13
    x = x * 0xC2B2AE35 & _32_BITS
    return x ^ x >> 16


def _rows(share: Share, count: int) -> tuple[Tensor, int]:
    """Return the numbers of this rank's ``count`` rows, and how many the whole batch has."""
    each = count // (share.stop - share.start)
    return torch.arange(share.start * each, share.stop * each), share.total * each
