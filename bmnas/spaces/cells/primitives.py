"""The five primitive operations of the pool (BM-NAS, Eq. 4 to 8), and how Cells and networks end.

Legend: B batch, L length, C channels. Everything is channels-last here: x, y and the result of an
operation are (B, L, C), where the paper writes (B, C, L).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm

ATTENTION_DROPOUT = 0.1


def scaled_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(C)) V, of (B, L, C) each; Q may have another L."""
    # Written out: scaled_dot_product_attention on three axes does not export to ONNX.
    scores = torch.matmul(query, key.transpose(1, 2)) / math.sqrt(query.shape[-1])
    return torch.matmul(scores.softmax(-1), value)


class Sum(nn.Module):
    """x + y (Eq. 5)."""

    def __init__(self, channels: int, length: int, dropout: float) -> None:
        super().__init__()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum (B, L, C)."""
        return x + y


class Attention(nn.Module):
    """Attention of x over y, dropout 0.1, LayerNorm over (C, L) (Eq. 6)."""

    def __init__(self, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(ATTENTION_DROPOUT)
        self.norm = nn.LayerNorm([length, channels])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the L tokens of x gather from those of y, (B, L, C)."""
        z: Tensor = self.norm(self.dropout(scaled_attention(x, y, y)))
        return z


class SharedInput(nn.Module):
    """An operation with a form of its own in the supernet, where x and y are one tensor t.

    Its ``layers`` read t, or t side by side with itself, so that those of all operations of a step
    can be one product; ``combine`` makes the result of what they give.
    """

    def layers(self) -> tuple[LinearNorm, ...]:
        """Return the layers whose results, (B, L, C) each, go to ``combine``."""
        raise NotImplementedError

    def combine(self, *projected: Tensor) -> Tensor:
        """Return z (B, L, C) from what the ``layers`` gave."""
        raise NotImplementedError


class LinearGLU(SharedInput):
    """BN(x W1 + b1) * sigmoid(BN(y W2 + b2)), dropout (Eq. 7)."""

    def __init__(self, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.value = LinearNorm(channels, channels)
        self.gate = LinearNorm(channels, channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x gated by y, (B, L, C)."""
        return self.combine(self.value(x), self.gate(y))

    def layers(self) -> tuple[LinearNorm, ...]:
        """Return the layers of value and gate."""
        return self.value, self.gate

    def combine(self, *projected: Tensor) -> Tensor:
        """Return value times the opened gate, (B, L, C)."""
        value, gate = projected
        z: Tensor = self.dropout(value * gate.sigmoid())
        return z


class ConcatFC(SharedInput):
    """ReLU(BN(concat(x, y) W + b)), dropout (Eq. 8)."""

    def __init__(self, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.project = LinearNorm(2 * channels, channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the projected concatenation, (B, L, C)."""
        return self.combine(self.project(torch.cat((x, y), dim=-1)))

    def layers(self) -> tuple[LinearNorm, ...]:
        """Return the layer of the concatenation, whose two halves both meet t."""
        return (self.project,)

    def combine(self, *projected: Tensor) -> Tensor:
        """Return what is positive of the projection, (B, L, C)."""
        (joined,) = projected
        z: Tensor = self.dropout(joined.relu())
        return z


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
