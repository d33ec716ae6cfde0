"""Modalities that look at each other: a non-local gate, and MulT.

Legend: B batch, L length, C channels, C_raw channels of a raw feature, M modalities, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm
from bmnas.features.reshape import Projection
from bmnas.spaces.cells.primitives import scaled_attention
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.base import Deciding
from bmnas.spaces.fusions.features import Sizes, last_features


class Attending(Fusion):
    """The last feature of each modality, projected to C channels; its L positions stay apart.

    Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(last_features(raw), sizes.length)
        self.projections = nn.ModuleList(
            Projection(raw[name], sizes.channels, sizes.dropout) for name in self.features
        )

    def hidden(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Return M projected features (B, L, C) of those pooled, (B, L, C_raw) each."""
        return [project(x) for project, x in zip(self.projections, pooled, strict=True)]


class CrossAttention(nn.Module):
    """softmax(x W_Q (y W_K)^T / sqrt(C)) y W_V: what the positions of x gather from those of y."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(channels, channels, bias=False) for _ in range(3)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B, L_x, C) from ``x`` (B, L_x, C) and ``y`` (B, L_y, C)."""
        return scaled_attention(self.query(x), self.key(y), self.value(y))


class NonLocalBlock(nn.Module):
    """x + BN(W a + b), a being what x gathers from y (Wang et al., CVPR 2018, Eq. 6).

    f is the embedded Gaussian, scaled by sqrt(C). The scale of BN starts at zero, as in the paper:
    the block first gives back x.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = CrossAttention(channels)
        self.change = LinearNorm(channels, channels)
        nn.init.zeros_(self.change.norm.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B, L_x, C) from ``x`` (B, L_x, C) and ``y`` (B, L_y, C)."""
        changed: Tensor = self.change(self.attention(x, y))
        return x + changed


class NonLocalGate(Deciding, Attending):
    """Each modality is changed by what it gathers from all others; the mean of the logits.

    h_m' = block(h_m, [h_n for n != m]), the L positions of the others one after another, and a
    linear classifier on each h_m', flattened. Non-local blocks (Wang et al., CVPR 2018, arXiv
    1711.07971) read one feature; a gate between modalities they are in Wang et al. (CVPR 2020,
    arXiv 1905.12681). There video looks at sound alone, in the midst of its network.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(raw, sizes)
        self.blocks = nn.ModuleList(NonLocalBlock(sizes.channels) for _ in self.features)
        self.add_classifiers([sizes.length * sizes.channels] * len(self.features), sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        h = self.hidden(pooled)
        others = [torch.cat([*h[:m], *h[m + 1 :]], dim=1) for m in range(len(h))]
        triples = zip(self.blocks, h, others, strict=True)
        return self.decisions([block(x, y) for block, x, y in triples]).mean(0)


class TransformerLayer(nn.Module):
    """A layer of MulT (section 3.2): x gathers from y, or from itself, and passes a hidden layer.

    x' = LN(x), h = LN(x' + attention(x', LN(y))), result h + W2 ReLU(W1 h + b1) + b2; dropout after
    the attention and before W2.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.attention = CrossAttention(channels)
        self.first, self.second = (nn.Linear(channels, channels) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B, L, C) from ``x`` and ``y``, (B, L, C) each."""
        target, source, between = self.norms
        x = target(x)
        h: Tensor = between(x + self.dropout(self.attention(x, source(y))))
        changed: Tensor = self.second(self.dropout(self.first(h).relu()))
        return h + changed


class MulTFusion(Attending):
    """MulT (Tsai et al., ACL 2019, arXiv 1906.00295), small: one layer where the paper has four.

    Positions p_m are added to each h_m. A crossmodal layer for each ordered pair, z_nm = layer(h_m,
    h_n), then a layer in which [z_nm for n != m], of (M - 1) C channels, looks at itself; a linear
    layer on the means over L of what these give, dropout before it.

    Of the paper it has one head, a hidden layer of C units, learned positions and the mean over
    positions, where there are several heads, 4 C units, sines and the last position: what ends a
    sentence sums it up, a corner of an image does not.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(raw, sizes)
        count, width = len(self.features), (len(self.features) - 1) * sizes.channels
        self.positions = nn.Parameter(torch.randn(count, sizes.length, sizes.channels) / 50)
        self.crossmodal = nn.ModuleList(
            TransformerLayer(sizes.channels, sizes.dropout) for _ in range(count * (count - 1))
        )
        self.alone = nn.ModuleList(TransformerLayer(width, sizes.dropout) for _ in range(count))
        self.dropout = Dropout(sizes.dropout)
        self.output = nn.Linear(count * width, sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        h = [x + p for x, p in zip(self.hidden(pooled), self.positions.unbind(), strict=True)]
        layers = iter(self.crossmodal)
        means = []
        for m, alone in enumerate(self.alone):
            others = [y for n, y in enumerate(h) if n != m]
            z = torch.cat([next(layers)(h[m], y) for y in others], dim=-1)
            means.append(alone(z, z).mean(1))
        logits: Tensor = self.output(self.dropout(torch.cat(means, dim=1)))
        return logits
