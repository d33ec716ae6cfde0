"""CentralNet (Vielzeuf et al., ECCV 2018 workshops, arXiv 1808.07275).

Legend: B batch, L length, C channels, C_raw channels of a raw feature, M modalities, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm
from bmnas.features.reshape import Projection
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.features import Sizes, levels
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Output


class CentralLayer(nn.Module):
    """One layer of the central network: ReLU(BN(W s + b)) of s = sum over i of a_i h_i, dropout.

    The h_i are the features of a level, and what the layer before gave where there is one. The
    a_i are learned, and start as an average.
    """

    def __init__(self, inputs: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((inputs,), 1 / inputs))
        self.layer = LinearNorm(channels, channels)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return (B, L, C) from ``inputs`` tensors (B, L, C)."""
        total = torch.einsum("i,iblc->blc", self.weights, torch.stack(tuple(hidden)))
        h: Tensor = self.dropout(self.layer(total).relu())
        return h


class CentralNet(Fusion):
    """A central network that takes in the features of all modalities at every level.

    h_C^(l+1) = layer(a_C h_C^l + sum over m of a_m h_m^l) with learned scalars a, and one loss for
    the central network and each modality, added up. In training ``forward`` also gives the logits
    of the modalities.

    The paper's modalities are networks with hidden layers of one width. Here h_m^l is the feature
    l of the backbone m, pooled and projected to (B, L, C), and with frozen backbones the losses of
    the modalities reach no further than that. The last features meet at the last level. The
    classifiers of the modalities are needed for training alone; they are counted with the central
    one. Raises UserError for fewer than two modalities.
    """

    CLASSIFIER = "classifiers"

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__()
        self.levels = levels(list(raw))
        self.features = tuple(raw)
        self.length = sizes.length
        self.projections = nn.ModuleList(
            Projection(raw[name], sizes.channels, sizes.dropout) for name in self.features
        )
        self.layers = nn.ModuleList(
            CentralLayer(len(names) + (depth > 0), sizes.channels, sizes.dropout)
            for depth, names in enumerate(self.levels)
        )
        # The central one first, then those of the modalities.
        self.classifiers = nn.ModuleList(
            nn.Linear(sizes.length * sizes.channels, sizes.classes)
            for _ in range(1 + len(self.levels[-1]))
        )

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return the loss of the central network plus those of the modalities."""
        return head.summed_loss((output,) if isinstance(output, Tensor) else output, labels)

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, K) from the pooled ``features``; in training those of modalities too.

        The features are (B, L, C_raw) each.
        """
        hidden = {
            name: project(feature)
            for name, project, feature in zip(self.features, self.projections, pooled, strict=True)
        }
        central: list[Tensor] = []
        for layer, names in zip(self.layers, self.levels, strict=True):
            central = [layer([*central, *(hidden[name] for name in names)])]
        decide, *decide_alone = self.classifiers
        logits: Tensor = decide(central[0].flatten(1))
        if not self.training:
            return logits
        last = [hidden[name].flatten(1) for name in self.levels[-1]]
        alone = (classify(h) for classify, h in zip(decide_alone, last, strict=True))
        return (logits, *alone)
