"""The network of a fusion tree.

Legend: B batch, L length, C_raw channels of a raw feature, W width of the tree, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.tree import folded

_ROOT_EPSILON = 1e-10
_NORM_EPSILON = 1e-12


def signed_sqrt(x: Tensor) -> Tensor:
    """Return sign(x) sqrt(|x| + 1e-10), element by element; value and gradient at 0 are 0."""
    return x.sign() * (x.abs() + _ROOT_EPSILON).sqrt()


def l2_normalised(x: Tensor) -> Tensor:
    """Return x / sqrt(max(sum of x², 1e-12)) over the last axis; a zero vector stays one."""
    return x * x.square().sum(-1, keepdim=True).clamp_min(_NORM_EPSILON).rsqrt()


class Leaf(nn.Module):
    """A feature as a vector of the tree's width: ReLU(BN(x) W + b), then dropout."""

    def __init__(self, channels_raw: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels_raw)
        self.dense = nn.Linear(channels_raw, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, W) from a vector (B, C_raw)."""
        h: Tensor = self.dropout(self.dense(self.norm(x)).relu())
        return h


class TreeFusion(Fusion):
    """The network of a ``FusionTree`` (DC-NAS, Liang et al., AAAI 2024).

    Every feature that the tree reads is averaged over its L positions to a vector, ``Leaf`` brings
    it to the width W, and the tree's operations join two vectors each: ``add`` x + y, ``mul``
    x * y, ``max`` and ``average`` element by element, ``concat_dense`` [x; y] V + c without
    activation. Then logits = l2(signed_sqrt(BN(root))) U + u. The recipe has no dropout;
    ``dropout`` acts on the leaves. ``channels_raw`` maps feature names to C_raw.
    """

    def __init__(
        self, found: FusionTree, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> None:
        super().__init__(found.live_features(), found.length)
        self.tokens = found.tokens
        width = found.width
        self.leaves = nn.ModuleList(
            Leaf(channels_raw[name], width, dropout) for name in self.features
        )
        # In the order in which the tree comes to them.
        self.merges = nn.ModuleList(
            nn.Linear(2 * width, width) for token in found.tokens if token == "concat_dense"
        )
        self.norm = nn.BatchNorm1d(width)
        self.output = nn.Linear(width, classes)

    def timed_parts(self) -> Sequence[nn.Module]:
        """Return all leaves, the layers that join two vectors, and what ends the tree."""
        return (*self.leaves, *self.merges, self.norm, self.output)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each, in their order."""
        averaged = [leaf(x.mean(1)) for leaf, x in zip(self.leaves, pooled, strict=True)]
        vectors = dict(zip(self.features, averaged, strict=True))
        merges = iter(self.merges)

        def join(operation: str, left: Tensor, right: Tensor) -> Tensor:
            return joined(operation, left, right, merges)

        root = folded(self.tokens, vectors.__getitem__, join)
        logits: Tensor = self.output(l2_normalised(signed_sqrt(self.norm(root))))
        return logits


def joined(operation: str, x: Tensor, y: Tensor, merges: Iterator[nn.Module]) -> Tensor:
    """Return what ``operation`` makes of vectors (B, W); the next of ``merges`` has its weights."""
    if operation == "concat_dense":
        z: Tensor = next(merges)(torch.cat((x, y), dim=-1))
        return z
    if operation == "add":
        return x + y
    if operation == "mul":
        return x * y
    if operation == "max":
        return torch.maximum(x, y)
    return (x + y) / 2
