"""A head for each modality beside that of the fusion network, as MFAS trains its networks.

Legend: B batch, L length, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.baselines.features import last_features
from bmnas.metrics import Objective, Output
from bmnas.network import Fusion


class HeadsObjective(Objective):
    """The losses of all heads, added up; the score is that of the sum of their logits."""

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Return the sum of the mean losses of the heads, which follow the summed logits."""
        if isinstance(output, Tensor):
            return super().loss(output, labels)
        _, *heads = output
        return torch.stack([Objective.loss(self, head, labels) for head in heads]).sum()


class ModalityHeads(Fusion):
    """``fusion`` and a linear head on the last feature of each modality; their logits are summed.

    Each head has a loss of its own, so that every modality says what it knows by itself and the
    fusion need not learn it again. In training ``forward`` also gives the logits of each head.
    ``channels_raw`` maps all features to C_raw. Raises UserError for fewer than two modalities.
    """

    def __init__(self, fusion: Fusion, channels_raw: Mapping[str, int], *, classes: int) -> None:
        super().__init__()
        self.last = last_features(channels_raw)
        read = {*fusion.features, *self.last}
        self.features = tuple(name for name in channels_raw if name in read)
        self.length = fusion.length
        self.fusion = fusion
        self.heads = nn.ModuleList(
            nn.Linear(fusion.length * channels_raw[name], classes) for name in self.last
        )

    @property
    def classifier(self) -> nn.Module:
        """The linear layers of all heads."""
        return nn.ModuleList([self.fusion.classifier, *self.heads])

    def objective(self, objective: Objective) -> Objective:
        """Return the objective with one loss more for each modality."""
        return HeadsObjective(objective.kind, objective.threshold)

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return summed logits (B, K) from the pooled ``features``, (B, L, C_raw) each."""
        named = dict(zip(self.features, pooled, strict=True))
        logits: list[Tensor] = [self.fusion([named[name] for name in self.fusion.features])]
        logits += [
            head(named[name].flatten(1)) for head, name in zip(self.heads, self.last, strict=True)
        ]
        total = torch.stack(logits).sum(0)
        return (total, *logits) if self.training else total
