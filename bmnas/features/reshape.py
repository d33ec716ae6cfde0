"""From a feature of any shape to (B, L, C): pooling without weights, then a projection.

Legend: B batch, L length, C channels, C_raw channels of the raw feature, T time or tokens,
H height, W width (BM-NAS, section 3.1). Raw features are channels-first, others channels-last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm


class Pool(nn.Module):
    """Pool a raw feature (B, C_raw, *rest) to (B, L, C_raw); it has no weights.

    ``rest`` is () for a vector, repeated L times; (T) for a sequence, adaptive max pooling to L;
    (H, W) for a map, adaptive max pooling to (sqrt L, sqrt L) where L is a perfect square and of
    the flattened map to L elsewhere; (T, H, W) for a clip, the maximum over H and W, then
    adaptive max pooling of T to L. Any other rank raises ValueError.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, feature: Tensor) -> Tensor:
        """Return the pooled feature (B, L, C_raw)."""
        rest = feature.dim() - 2
        side = math.isqrt(self.length)
        if rest == 0:
            return feature.unsqueeze(1).expand(-1, self.length, -1)
        if rest == 2 and side * side == self.length:
            pooled = self.pool_2d(feature, side).flatten(2)
        elif rest in (1, 2):
            pooled = self.pool_1d(feature.flatten(2))
        elif rest == 3:
            pooled = self.pool_1d(feature.flatten(3).amax(-1))
        else:
            raise ValueError(
                f"received a feature of shape {tuple(feature.shape)}, "
                "expected (B, C), (B, C, T), (B, C, H, W) or (B, C, T, H, W)"
            )
        return pooled.transpose(1, 2)

    def pool_1d(self, x: Tensor) -> Tensor:
        """Return the adaptive max pooling of (B, C, T) to (B, C, L)."""
        return F.adaptive_max_pool1d(x, self.length)

    def pool_2d(self, x: Tensor, side: int) -> Tensor:
        """Return the adaptive max pooling of (B, C, H, W) to (B, C, side, side)."""
        return F.adaptive_max_pool2d(x, (side, side))


class Tokens(nn.Module):
    """Every position of a raw feature (B, C_raw, *rest) as a token; a vector is one."""

    def forward(self, feature: Tensor) -> Tensor:
        """Return tokens (B, T, C_raw)."""
        return feature.flatten(2).transpose(1, 2) if feature.dim() > 2 else feature.unsqueeze(1)


#: Ends the names of the masks of tokens: that of feature ``image.1`` is ``image.1.mask``.
MASK = ".mask"


@dataclass(frozen=True)
class Reading:
    """What the feature cache keeps of a raw feature (B, C_raw, *rest).

    Pooled to ``length``, see ``Pool``; or, where that is None, every position as a token: a word,
    a patch, a moment, see ``Tokens``.
    """

    length: int | None

    @property
    def key(self) -> dict[str, int | str]:
        """What tells it from other readings, for the key of a cache's entry."""
        if self.length is None:
            return {"reading": "tokens"}
        return {"reading": "pooled", "length": self.length}

    def read(self, feature: Tensor) -> Tensor:
        """Return what is kept of ``feature``: (B, L or T, C_raw)."""
        kept: Tensor = self.module()(feature)
        return kept

    def module(self) -> nn.Module:
        """Return what reads a feature, a module without weights."""
        return Tokens() if self.length is None else Pool(self.length)

    def mask(self, kept: Tensor, content: Tensor | None) -> Tensor | None:
        """Return which tokens (B, T) of what is kept count; None where it is pooled.

        ``content`` (B, T) is what the backbone says of the raw feature, see ``Backbone.mask``.
        """
        if self.length is not None:
            return None
        if content is None:
            return torch.ones(kept.shape[:2], dtype=torch.bool, device=kept.device)
        return content.expand(kept.shape[:2])


class Projection(nn.Module):
    """The reshape layer's weights: linear C_raw to C with bias, BatchNorm, ReLU, dropout."""

    def __init__(self, channels_raw: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.project = LinearNorm(channels_raw, channels)
        self.dropout = Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the reshaped feature (B, L, C) of a pooled one (B, L, C_raw)."""
        x: Tensor = self.dropout(self.project(pooled).relu())
        return x
