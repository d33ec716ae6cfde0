"""What texts and tokens share: an embedding, then convolutions that do not see the padding.

Legend: B batch, T positions, C channels, K classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from bmnas.backbones.base import Backbone

_EMBEDDING = 64
_WIDTH = 96
_KERNELS = (1, 3, 5)  # a word by itself, with its neighbours, in its phrase
_HIDDEN_WORDS = 0.05


class MaskedConvStage(nn.Module):
    """Convolution, LayerNorm over channels, ReLU, dropout, shortcut; zero where it is padded."""

    def __init__(self, channels_in: int, channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.residual = channels_in == channels

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (B, C, T), not negative, from ``x`` (B, C_in, T) and ``mask`` (B, 1, T)."""
        y = self.norm(self.convolution(x).transpose(1, 2)).relu().transpose(1, 2)
        y = self.dropout(y)
        out: Tensor = (x + y if self.residual else y) * mask
        return out


class MaskedHead(nn.Module):
    """Average and maximum over the positions that are not padding, then a linear layer."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, K) from ``x`` (B, C, T), zero at padding, and ``mask`` (B, 1, T)."""
        mean = x.sum(-1) / mask.sum(-1).clamp(min=1)
        logits: Tensor = self.linear(self.dropout(torch.cat([mean, x.amax(-1)], dim=1)))
        return logits


class WordConvBackbone(Backbone):
    """Rows of integers (B, T), int64, through an embedding and three convolutional stages.

    ``entries`` is the size of the embedding; integers outside it count as ``unknown``; ``pad``
    marks positions without content, None means that there are none. In training one position
    in twenty is shown as unknown, so that an unknown word later finds a trained embedding.
    Features are three sequences (B, C_raw, T), zero where the row is padded.
    """

    def build(
        self, *, entries: int, unknown: int, pad: int | None, classes: int, dropout: float
    ) -> None:
        """Set up embedding, stages and head."""
        self.entries = entries
        self.unknown = unknown
        self.pad = pad
        self.stem = nn.Embedding(entries, _EMBEDDING, padding_idx=pad)
        # Unit variance, the default, would drown the gradient of rare words.
        with torch.no_grad():
            self.stem.weight.mul_(0.2)
        widths = (_EMBEDDING, *[_WIDTH] * len(_KERNELS))
        self.stages = nn.ModuleList(
            MaskedConvStage(width_in, width, kernel, dropout)
            for width_in, width, kernel in zip(widths[:-1], widths[1:], _KERNELS, strict=True)
        )
        self.feature_names = tuple(str(number) for number in range(1, len(widths)))
        self.feature_channels = widths[1:]
        self.head = MaskedHead(_WIDTH, classes, dropout)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features (B, C_raw, T) of integers ``x`` (B, T)."""
        known = (x >= 0) & (x < self.entries)
        ids = torch.where(known, x, self.unknown)
        mask = self.content(x)
        if self.training:
            hidden = torch.rand(ids.shape, device=ids.device) < _HIDDEN_WORDS
            # Padding is masked anyway: hiding it changes nothing.
            ids = torch.where(hidden, self.unknown, ids)
        y = self.stem(ids).transpose(1, 2) * mask
        outputs = []
        for stage in self.stages:
            y = stage(y, mask)
            outputs.append(y)
        return outputs

    def mask(self, x: Tensor) -> Tensor | None:
        """Return which integers of ``x`` (B, T) are content and not padding."""
        return None if self.pad is None else x != self.pad

    def content(self, x: Tensor) -> Tensor:
        """Return ``mask`` as zeros and ones (B, 1, T)."""
        mask = self.mask(x)
        content = torch.ones_like(x) if mask is None else mask
        return content.to(cast(nn.Embedding, self.stem).weight.dtype).unsqueeze(1)

    def classify(self, feature: Tensor, x: Tensor) -> Tensor:
        """Return the head's logits (B, K) from the last feature and integers ``x`` (B, T)."""
        assert self.head is not None
        logits: Tensor = self.head(feature, self.content(x))
        return logits
