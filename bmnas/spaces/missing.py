"""A fusion network of any space that may be given less than all modalities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bmnas.features.missing import StandIns
from bmnas.spaces.fusion import Fusion
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Output


class PartialFusion(Fusion):
    """The network ``whole``, with ``StandIns`` in front of it; the arguments are theirs."""

    def __init__(
        self, whole: Fusion, channels: Mapping[str, int], optional: Collection[str], rate: float
    ) -> None:
        super().__init__(whole.features, whole.length)
        self.stand_ins = StandIns(whole.features, channels, optional, rate)
        self.whole = whole

    @property
    def classifier(self) -> nn.Module:
        """That of the whole network."""
        return self.whole.classifier

    @property
    def has_own_loss(self) -> bool:
        """Whether the whole network's ``loss`` may be another than the task's."""
        return self.whole.has_own_loss

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return what the training of the whole network minimises."""
        return self.whole.loss(head, output, labels)

    def sharpen(self, factor: float) -> None:
        """Sharpen the whole network."""
        self.whole.sharpen(factor)

    def timed_parts(self) -> Sequence[nn.Module]:
        """Return the parts of the whole network: what stands in front takes next to no time."""
        return self.whole.timed_parts()

    def forward(self, pooled: Sequence[Tensor], *others: Any) -> Output:
        """Return what the whole network does, from features (B, L, C_raw), zeros where lacking."""
        output: Output = self.whole(self.stand_ins(pooled), *others)
        return output
