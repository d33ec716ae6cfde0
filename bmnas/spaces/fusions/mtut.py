"""MTUT, multimodal training and unimodal testing (Abavisani et al., CVPR 2019, arXiv 1812.06145).

Legend: B batch, L length, C channels, C_raw channels of a raw feature, M modalities, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm
from bmnas.spaces.fusions.base import Deciding
from bmnas.spaces.fusions.features import Sizes, last_features
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Output

BETA = 2.0
WEIGHT = 0.05


def correlation(feature: Tensor) -> Tensor:
    """Return corr(F) = F^ F^T (B, L, L), F^ being F (B, L, C) with rows of length one."""
    rows = F.normalize(feature, dim=-1)
    return rows @ rows.transpose(1, 2)


def focal_weight(own: Tensor, other: Tensor) -> Tensor:
    """Return rho = S(exp(beta d) - 1) of the loss difference d, S setting what is negative to 0.

    A modality is drawn towards those with a smaller loss alone. No gradient goes through it.
    """
    return (BETA * (own - other)).detach().expm1().clamp_min(0)


def aligned_loss(head: TaskHead, output: Output, labels: Tensor) -> Tensor:
    """Return the losses of the modalities, and of each its semantic alignment with better ones.

    loss = sum over m of (loss_m + 0.05 sum over n of rho_mn ||corr(F_m) - corr(F_n)||²_F), the norm
    averaged over the batch; F_n is held still where m is drawn to it. ``output`` is fused logits,
    M logits (B, K) and M correlations (B, L, L).
    """
    _, *rest = output
    half = len(rest) // 2
    losses = [head.loss(logits, labels) for logits in rest[:half]]
    total = torch.stack(losses).sum()
    for m, own in enumerate(rest[half:]):
        for n, other in enumerate(rest[half:]):
            if n != m:
                apart = (own - other.detach()).square().sum((1, 2)).mean()
                total = total + WEIGHT * focal_weight(losses[m], losses[n]) * apart
    return total


class MTUTFusion(Deciding):
    """Separate networks that learn a common semantics; their logits are averaged.

    F_m = ReLU(BN(x_m W_m + b_m)) of the last feature x_m, dropout, one linear classifier a
    modality, trained with ``aligned_loss``. In training ``forward`` also gives each modality's
    logits and correlations.

    In the paper F_m is the last map of a 3D network and all modalities see one scene, so that a
    position is the same place in each. Here the L pooled positions of two modalities need not
    belong together, and a vector has L equal ones: its correlations say nothing. With frozen
    backbones the alignment reaches W_m alone. Raises UserError for fewer than two modalities.
    """

    def __init__(self, raw: Mapping[str, int], sizes: Sizes) -> None:
        super().__init__(last_features(raw), sizes.length)
        self.projections = nn.ModuleList(
            LinearNorm(raw[name], sizes.channels) for name in self.features
        )
        self.dropout = Dropout(sizes.dropout)
        widths = [sizes.length * sizes.channels] * len(self.features)
        self.add_classifiers(widths, sizes.classes)

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return the losses of the modalities and their alignment, see ``aligned_loss``."""
        if isinstance(output, Tensor):
            return super().loss(head, output, labels)
        return aligned_loss(head, output, labels)

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each.

        In training they are followed by M logits (B, K) and M correlations (B, L, L).
        """
        hidden = [p(x).relu() for p, x in zip(self.projections, pooled, strict=True)]
        logits = self.decisions([self.dropout(h) for h in hidden])
        fused = logits.mean(0)
        if not self.training:
            return fused
        return (fused, *logits.unbind(), *map(correlation, hidden))
