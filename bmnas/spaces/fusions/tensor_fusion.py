"""Products of what the modalities say: all of them, few of them, or those of pairs.

Legend: B batch, L length, C hidden units, C_raw channels of a raw feature, M modalities,
K classes, k units of a vector, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.features import Sizes, last_features

RANK = 4
_PRODUCTS = 1024


class Vectors(Fusion):
    """One vector a modality, z_m = ReLU(BN(W_m x_m + b_m)) of its flattened last feature, dropout.

    Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes, units: int) -> None:
        super().__init__(last_features(raw), sizes.length)
        self.vectors = nn.ModuleList(
            LinearNorm(sizes.length * raw[name], units) for name in self.features
        )
        self.dropout = Dropout(sizes.dropout)

    def read(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Return the M vectors (B, k) of the pooled ``features``, (B, L, C_raw) each."""
        pairs = zip(self.vectors, pooled, strict=True)
        return [self.dropout(layer(x.flatten(1)).relu()) for layer, x in pairs]


def products(x: Tensor, y: Tensor) -> Tensor:
    """Return every product of one of ``x`` (B, i) and one of ``y`` (B, j): (B, i j)."""
    return (x.unsqueeze(2) * y.unsqueeze(1)).flatten(1)


class TensorFusion(Vectors):
    """Tensor fusion (Zadeh et al., EMNLP 2017, arXiv 1707.07250, section 4.2).

    z = [1; z_1] x … x [1; z_M], the outer product, flattened: the vectors, and the products of any
    two to M of their elements. logits = W2 ReLU(BN(W1 z + b1)) + b2, dropout before W2, C hidden
    units; the paper has two such layers. A vector has as many units, C at most, as make no more
    than 1,024 products: 31 for two modalities, 9 for three, where the paper has 128 or 32.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        modalities = len(last_features(raw))
        units = max(1, min(sizes.channels, int(_PRODUCTS ** (1 / modalities)) - 1))
        super().__init__(raw, sizes, units)
        self.hidden = LinearNorm((1 + units) ** modalities, sizes.channels)
        self.output = nn.Linear(sizes.channels, sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        z = reduce(products, [F.pad(z, (1, 0), value=1.0) for z in self.read(pooled)])
        logits: Tensor = self.output(self.dropout(self.hidden(z).relu()))
        return logits


class LowRankFusion(Vectors):
    """Low-rank multimodal fusion (Liu et al., ACL 2018, arXiv 1806.00064, section 3.2).

    A linear layer on the tensor of ``TensorFusion``, whose weights are a sum of R = 4 products of
    factors, so that the tensor is never made: h = sum over i of prod over m of W_m^i [z_m; 1].
    logits = W BN(h) + b, dropout before W; vectors and h have C units. The BatchNorm, which the
    paper does not have, makes up for the scale of a product.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(raw, sizes, sizes.channels)
        # The bias of a layer is the weight of the one.
        self.factors = nn.ModuleList(
            nn.Linear(sizes.channels, RANK * sizes.channels) for _ in self.features
        )
        self.norm = nn.BatchNorm1d(sizes.channels)
        self.output = nn.Linear(sizes.channels, sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        pairs = zip(self.factors, self.read(pooled), strict=True)
        terms = reduce(torch.mul, [factor(z) for factor, z in pairs])
        h = terms.unflatten(1, (RANK, -1)).sum(1)
        logits: Tensor = self.output(self.dropout(self.norm(h)))
        return logits


class MultiplicativeFusion(Vectors):
    """Multiplicative interactions (Jayakumar et al., ICLR 2020, section 2): bilinear logits.

    logits = z_1 W z_2 + U_1 z_1 + U_2 z_2 + b with W of k x k x K, which is the paper's "MI-Matrix"
    with one modality as the context of the other. The paper has two inputs; M of them have a W for
    each pair: sum over m < n of z_m W_mn z_n, plus sum over m of U_m z_m. Vectors have C units.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(raw, sizes, sizes.channels)
        modalities = len(self.features)
        pairs = modalities * (modalities - 1) // 2
        width = pairs * sizes.channels**2 + modalities * sizes.channels
        self.output = nn.Linear(width, sizes.classes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        z = self.read(pooled)
        terms = [products(x, y) for x, y in combinations(z, 2)]
        logits: Tensor = self.output(torch.cat([*terms, *z], dim=1))
        return logits
