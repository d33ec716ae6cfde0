"""The five primitive operations of the pool (BM-NAS, Eq. 4 to 8), and the layers they are made of.

Legend: B batch, L length, C channels. Everything is channels-last here: x, y and the result of an
operation are (B, L, C), where the paper writes (B, C, L).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.machine.distribution.share import current

ATTENTION_DROPOUT = 0.1

_BYTE = 256


def keep_mask(x: Tensor, p: float, training: bool) -> tuple[Tensor | None, float]:
    """Return ones and zeros of the shape of ``x``, zero with probability ``p``, and 1 / (1 - p).

    The mask is None where nothing is dropped. On a CPU it is cut out of 64-bit random numbers,
    eight elements from each, and compared straight into floating point, which is many times
    faster than one draw per element; ``p`` is then rounded to a multiple of 1/256. With several
    ranks the mask of the whole batch is drawn, and ``x`` gets its rows of it.
    """
    if not training or p == 0.0:
        return None, 1.0
    share = current()
    whole = None if share is None else share.whole(x)
    if whole is None:
        return _draw_mask(x, p)
    shape, rows = whole
    mask, factor = _draw_mask(x.new_empty(1).expand(shape), p)
    return mask[rows], factor


def _draw_mask(x: Tensor, p: float) -> tuple[Tensor, float]:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.empty_like(x).bernoulli_(1.0 - p), 1.0 / (1.0 - p)
    threshold, factor = drop_threshold(p)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    random = words.view(torch.uint8)[: x.numel()].view(x.shape)
    # A boolean mask would be converted again in every product, which costs more than the product.
    mask = torch.ge(random, threshold, out=torch.empty(x.shape, dtype=x.dtype))
    return mask, factor


def drop_threshold(p: float) -> tuple[int, float]:
    """Return below which value a random byte drops an element, and the factor for the others."""
    threshold = 0 if p == 0.0 else min(max(round(p * _BYTE), 1), _BYTE - 1)
    return threshold, _BYTE / (_BYTE - threshold)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by 1 / (1 - p).

    On a CPU ``p`` is rounded to a multiple of 1/256, see ``keep_mask``.
    """
    if current() is None and (x.device.type != "cpu" or torch.compiler.is_compiling()):
        return F.dropout(x, p, training)
    mask, factor = keep_mask(x, p, training)
    return x if mask is None else x * mask.mul_(factor)


class Dropout(nn.Module):
    """``dropout`` as a module."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with elements dropped in training mode, unchanged in evaluation mode."""
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """Show the probability when the module is printed."""
        return f"p={self.p}"


class LinearNorm(nn.Module):
    """Linear layer with bias, then BatchNorm over channels: (B, L, C_in) to (B, L, C_out)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels_in, channels_out)
        self.norm = nn.BatchNorm1d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(x W + b), the statistics taken over batch and length."""
        h: Tensor = self.linear(x)
        return batch_norm(h, self.norm)


def batch_norm(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Apply ``norm`` over the last axis of ``x`` (..., C)."""
    # As a matrix of rows the kernel of torch is ten times faster than on (B, C, L).
    y: Tensor = norm(x.reshape(-1, x.shape[-1]))
    return y.view(x.shape)


def scaled_attention(query: Tensor, memory: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(C)) V with Q = ``query`` and K = V = ``memory``, (B, L, C)."""
    # Written out: scaled_dot_product_attention on three axes does not export to ONNX.
    scores = torch.matmul(query, memory.transpose(1, 2)) / math.sqrt(query.shape[-1])
    return torch.matmul(scores.softmax(-1), memory)


class Sum(nn.Module):
    """x + y (Eq. 5)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum (B, L, C)."""
        return x + y


class Attention(nn.Module):
    """Attention of x over y, dropout 0.1, LayerNorm over (C, L) (Eq. 6)."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.dropout = Dropout(ATTENTION_DROPOUT)
        self.norm = nn.LayerNorm([length, channels])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the L tokens of x gather from those of y, (B, L, C)."""
        z: Tensor = self.norm(self.dropout(scaled_attention(x, y)))
        return z


class LinearGLU(nn.Module):
    """BN(x W1 + b1) * sigmoid(BN(y W2 + b2)), dropout (Eq. 7)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.value = LinearNorm(channels, channels)
        self.gate = LinearNorm(channels, channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x gated by y, (B, L, C)."""
        z: Tensor = self.dropout(self.value(x) * self.gate(y).sigmoid())
        return z


class ConcatFC(nn.Module):
    """ReLU(BN(concat(x, y) W + b)), dropout (Eq. 8)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.project = LinearNorm(2 * channels, channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the projected concatenation, (B, L, C)."""
        z: Tensor = self.dropout(self.project(torch.cat((x, y), dim=-1)).relu())
        return z


#: How to build each operation that computes something; ``zero`` is dropped, never built.
OPERATIONS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "sum": lambda channels, length, dropout: Sum(),
    "attention": lambda channels, length, dropout: Attention(channels, length),
    "linear_glu": lambda channels, length, dropout: LinearGLU(channels, dropout),
    "concat_fc": lambda channels, length, dropout: ConcatFC(channels, dropout),
}


class CellOutput(nn.Module):
    """The end of a Cell: merge its step outputs, add x, LayerNorm over (C, L) (section 3.3).

    ``steps`` outputs are concatenated and merged by linear, BatchNorm, ReLU and dropout, unless
    ``merge`` is false: then the one output, or none, is taken as it is.
    """

    def __init__(
        self, steps: int, channels: int, length: int, dropout: float, *, merge: bool
    ) -> None:
        super().__init__()
        self.merge = LinearNorm(steps * channels, channels) if merge else None
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm([length, channels])

    def forward(self, x: Tensor, outputs: list[Tensor]) -> Tensor:
        """Return the output (B, L, C) of a Cell with first input ``x``."""
        if self.merge is not None:
            x = x + self.dropout(self.merge(torch.cat(outputs, dim=-1)).relu())
        elif outputs:
            x = x + outputs[0]
        z: Tensor = self.norm(x)
        return z


class Head(nn.Module):
    """Concatenate all Cell outputs, LayerNorm over (N*C, L), ReLU, flatten, linear to K logits."""

    def __init__(self, cells: int, channels: int, length: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([length, cells * channels])
        self.classifier = nn.Linear(length * cells * channels, classes)

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """Return logits (B, K) from the N Cell outputs, (B, L, C) each."""
        h = self.norm(torch.cat(outputs, dim=-1)).relu()
        logits: Tensor = self.classifier(h.flatten(1))
        return logits
