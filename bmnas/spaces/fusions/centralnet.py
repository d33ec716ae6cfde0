"""CentralNet (Vielzeuf et al., ECCV 2018 workshops, arXiv 1808.07275).

Legend: B batch, L length, C channels, C_raw channels of a raw feature, M modalities, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm
from bmnas.spaces.fusions.base import Deciding, LevelFusion
from bmnas.spaces.fusions.features import Sizes
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


class CentralNet(Deciding, LevelFusion):
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

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(raw, sizes)
        self.layers = nn.ModuleList(
            CentralLayer(inputs, sizes.channels, sizes.dropout) for inputs in self.inputs
        )
        # The central one first, then those of the modalities.
        widths = [sizes.length * sizes.channels] * (1 + len(self.levels[-1]))
        self.add_classifiers(widths, sizes.classes)

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return the loss of the central network plus those of the modalities."""
        return head.summed_loss((output,) if isinstance(output, Tensor) else output, labels)

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, K) from the pooled ``features``; in training those of modalities too.

        The features are (B, L, C_raw) each.
        """
        hidden = self.hidden(pooled)
        central = self.fused(hidden, self.layers)
        if self.training:
            alone = [hidden[name] for name in self.levels[-1]]
            return self.decisions([central, *alone]).unbind()
        logits: Tensor = self.classifiers[0](central.flatten(1))
        return logits
