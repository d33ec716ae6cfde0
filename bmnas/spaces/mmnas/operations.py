"""The operations of MMnas: attention of several heads, with and without relations; feed forward.

What a network or a supernet of them is made of, see ``network``. None of them adds its input or
normalises: ``Block`` does both.

Legend: B batch, T tokens of what looks, S tokens of what is looked at, N regions, d width,
h heads of d / h channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.layers import Dropout

#: Numbers that tell how two boxes lie to each other, and channels of what is made of them.
RELATIONS, RELATED = 4, 64
_NEAREST = 1e-3  # distance of two centres in widths or heights, at least
_WEAKEST = 1e-6  # relation, at least
_MASKED = -1e9
#: How many times larger than torch's some layers begin, unless all is as in the official program.
#: What tells words apart is small otherwise: networks stop at what can be added up.
SHARPER = 3.0


@dataclass(frozen=True)
class Around:
    """What a block sees beside its input (B, T, d): which of its tokens count, ``mask`` (B, T).

    A block of the decoder also sees ``encoded`` (B, S, d), the end of the encoder, with its mask
    ``counted`` (B, S), and ``related``, see ``Relations``, where there are boxes.
    """

    mask: Tensor
    encoded: Tensor | None = None
    counted: Tensor | None = None
    related: Tensor | None = None


def masked_softmax(logits: Tensor, mask: Tensor, axis: int = -1) -> Tensor:
    """Return the softmax over an axis, of what counts alone; where nothing does, equal numbers."""
    # Infinity would make NaN of a row that is all masked; float16 does not reach a billion.
    least = max(_MASKED, torch.finfo(logits.dtype).min)
    return torch.where(mask, logits, least).softmax(axis)


class Attention(nn.Module):
    """W_m [heads of dropout(softmax(q k^T / sqrt(d / h))) v]; no layer has a bias."""

    def __init__(self, width: int, head: int, dropout: float) -> None:
        super().__init__()
        self.heads = width // head
        self.query, self.key, self.value, self.merge = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.dropout = Dropout(dropout)

    @torch.no_grad()
    def sharpen(self) -> None:
        """Make the weights of attention differ more at the start, where they are nearly equal."""
        for layer in (self.query, self.key):
            layer.weight *= SHARPER

    def attend(self, x: Tensor, y: Tensor, mask: Tensor, added: Tensor | None = None) -> Tensor:
        """Return what ``x`` (B, T, d) gathers from ``y`` (B, S, d), whose ``mask`` is (B, S).

        ``added`` (B or 1, h, T, S) is added to the logits.
        """
        q, k, v = (
            layer(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, z in ((self.query, x), (self.key, y), (self.value, y))
        )
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if added is not None:
            logits = logits + added
        weights = self.dropout(masked_softmax(logits, mask[:, None, None, :]))
        gathered: Tensor = self.merge((weights @ v).transpose(1, 2).flatten(2))
        return gathered


class SelfAttention(Attention):
    """SA: tokens look at each other."""

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """Return (B, T, d) from ``x`` (B, T, d)."""
        return self.attend(x, x, around.mask)


class GuidedAttention(Attention):
    """GA: tokens of the decoder look at the end of the encoder."""

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """Return (B, T, d) from ``x`` (B, T, d)."""
        assert around.encoded is not None
        assert around.counted is not None
        return self.attend(x, around.encoded, around.counted)


class RelationAttention(Attention):
    """RSA: SA whose logits have log max(ReLU(V E_ij + b), 1e-6) added, a number for each head."""

    def __init__(self, width: int, head: int, dropout: float) -> None:
        super().__init__(width, head, dropout)
        self.relation = nn.Linear(RELATED, self.heads)

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """Return (B, T, d) from ``x`` (B, T, d)."""
        assert around.related is not None
        strength: Tensor = self.relation(around.related).relu()
        added = strength.clamp_min(_WEAKEST).log().permute(0, 3, 1, 2)
        return self.attend(x, x, around.mask, added)


class FeedForward(nn.Module):
    """FFN: W2 dropout(ReLU(W1 x + b1)) + b2, token by token, ``hidden`` times as wide between."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden * width)
        self.second = nn.Linear(hidden * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """Return (B, T, d) from ``x`` (B, T, d)."""
        y: Tensor = self.second(self.dropout(self.first(x).relu()))
        return y


class OfficialNorm(nn.Module):
    """The LayerNorm of the official program: g (x - mean) / (deviation + 1e-6) + c.

    The deviation is that of a sample, with d - 1, and the epsilon stands outside the root.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., d) from ``x`` (..., d)."""
        deviation = x.std(-1, keepdim=True)
        return self.weight * (x - x.mean(-1, keepdim=True)) / (deviation + 1e-6) + self.bias


def norm_of(kind: Literal["layer", "official"], width: int) -> nn.Module:
    """Return torch's LayerNorm, or that of the official program."""
    return nn.LayerNorm(width) if kind == "layer" else OfficialNorm(width)


class Block(nn.Module):
    """z = LN(x + dropout(f(x))) with one ``operation`` f: sa, rsa, ga or ffn."""

    def __init__(
        self,
        operation: str,
        width: int,
        head: int,
        hidden: int,
        norm: Literal["layer", "official"],
        dropout: float,
    ) -> None:
        super().__init__()
        self.operation: FeedForward | Attention
        if operation == "ffn":
            self.operation = FeedForward(width, hidden, dropout)
        else:
            self.operation = _ATTENTIONS[operation](width, head, dropout)
            if norm != "official":
                self.operation.sharpen()
        self.dropout = Dropout(dropout)
        self.norm = norm_of(norm, width)

    def forward(self, x: Tensor, around: Around) -> Tensor:
        """Return (B, T, d) from ``x`` (B, T, d)."""
        z: Tensor = self.norm(x + self.dropout(self.operation(x, around)))
        return z


_ATTENTIONS: dict[str, type[Attention]] = {
    "sa": SelfAttention,
    "rsa": RelationAttention,
    "ga": GuidedAttention,
}


def relations(boxes: Tensor, mask: Tensor) -> Tensor:
    """Return how boxes (B, N, 4) lie to each other, (B, N, N, 4); zero where one does not count.

    ``boxes`` are x1, y1, x2, y2 in pixels. Of i and j the logarithms of the distances of their
    centres in widths and heights of i, and of the widths and the heights of i in those of j.
    """
    first, last = boxes[..., :2], boxes[..., 2:]
    centre, size = (first + last) / 2, (last - first).clamp_min(0) + 1
    own, other = size[:, :, None], size[:, None]
    distance = (centre[:, :, None] - centre[:, None]).abs() / own
    found = torch.cat([distance.clamp_min(_NEAREST).log(), (own / other).log()], dim=-1)
    both = mask[:, :, None] & mask[:, None]
    return torch.where(both[..., None], found, 0.0)


class Relations(nn.Module):
    """E = ReLU(W R + b) of ``relations`` R, which all blocks with RSA share."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(RELATIONS, RELATED)

    def forward(self, boxes: Tensor, mask: Tensor) -> Tensor:
        """Return (B, N, N, 64) from ``boxes`` (B, N, 4) and which of them count, (B, N).

        Where all rows are the same, as those of fixed windows are, (1, N, N, 64).
        """
        # A graph that is made ahead must do for rows that differ.
        if not torch.compiler.is_compiling() and all((x == x[:1]).all() for x in (boxes, mask)):
            boxes, mask = boxes[:1], mask[:1]
        related: Tensor = F.relu(self.linear(relations(boxes, mask)))
        return related


class AttentiveSum(nn.Module):
    """AttFlat: W (sum of a_t x_t) + b, a the softmax over tokens of a small network of each."""

    def __init__(self, width: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.weigh = nn.Linear(width, 1)
        self.merge = nn.Linear(width, width_out)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return a vector (B, width_out) from ``x`` (B, T, d) and its mask (B, T)."""
        logits = self.weigh(self.dropout(self.hidden(x).relu()))
        weights = masked_softmax(logits, mask[..., None], axis=1)
        flat: Tensor = self.merge((weights * x).sum(1))
        return flat
