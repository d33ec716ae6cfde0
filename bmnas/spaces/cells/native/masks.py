"""The kernels' dropout masks, computed with PyTorch: several ranks draw what one process would.

Legend: B batch, L length, C channels, R = B*L rows, all of this rank's share.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bmnas.machine.distribution.share import Share, current
from bmnas.spaces.cells.native.build import kernels
from bmnas.spaces.cells.native.calls import Drop

_32_BITS, _64_BITS = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_GOLDEN_64 = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed number
_GOLDEN_32 = 0x9E3779B9

_member = 0  # which of several supernets draws, see in_turn


def kernels_share(x: Tensor) -> Share | None:
    """Return the share of several ranks where one process would have run the kernels on ``x``."""
    share = current()
    if share is None or x.device.type != "cpu" or x.dtype != torch.float32 or kernels() is None:
        return None
    return share


def in_turn(x: Tensor, members: int) -> Iterator[int]:
    """Yield 0 to ``members`` - 1, the numbers of supernets that are run on ``x`` one at a time.

    Where ``kernels_share`` speaks of a share, each gets the masks that the kernels would draw for
    it. They draw a seed once for all members, so each begins with the same state of the generator.
    """
    if kernels_share(x) is None:
        yield from range(members)
        return
    global _member
    state = torch.get_rng_state()
    try:
        for number in range(members):
            torch.set_rng_state(state)
            _member = number
            yield number
    finally:
        _member = 0


def rows_mask(share: Share, x: Tensor, p: float, groups: int = 1) -> tuple[Tensor, float]:
    """Return ones and zeros for ``x`` (R, groups*C), and the factor for what is kept.

    The kernels number the rows of the first group before those of the second.
    """
    drop = Drop.of(p)
    rows, total = _rows(share, len(x))
    numbers = rows.unsqueeze(1) + total * torch.arange(groups)
    mask = kept(member_seed(drop.seed, _member), numbers, x.shape[1] // groups, 0, drop.threshold)
    return mask.flatten(1), drop.factor


def step_masks(share: Share, t: Tensor, p: float, attention_p: float) -> list[tuple[Tensor, float]]:
    """Return masks (B, L, C) and factors of linear_glu, concat_fc and attention for ``t``."""
    drop, attention_drop = Drop.of(p), Drop.of(attention_p)
    seed = member_seed(drop.seed ^ attention_drop.seed, _member)
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


def member_seed(seed: int, member: int) -> int:
    """Return the seed of a member's masks as a signed 64-bit number; the first keeps its own."""
    if member == 0:
        return seed
    # SplitMix64's finaliser.
    x = seed + member * 0x9E3779B97F4A7C15 & _64_BITS
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _64_BITS
    x ^= x >> 31
    return x - (x >> 63 << 64)


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
