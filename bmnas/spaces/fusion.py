"""What a network of any search space is: pooled features, or tokens, to logits.

Legend: B batch, L length, T tokens, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Output, logits_of


class Fusion(nn.Module):
    """What fuses features: reads ``features``, in their order, pooled to ``length``.

    With a length of None it reads them as tokens, see ``Reading``: its ``forward`` then takes one
    (B, T, C_raw) for each, their masks (B, T), and what else a task says of a sample, if anything.
    """

    #: The attribute that is the classifier.
    CLASSIFIER: ClassVar[str] = "output"

    def __init__(self, features: Iterable[str], length: int | None) -> None:
        super().__init__()
        self.features = tuple(features)
        self.length = length

    @property
    def classifier(self) -> nn.Module:
        """The last layer or layers, which give the logits and are counted apart."""
        found: nn.Module = getattr(self, self.CLASSIFIER)
        return found

    @property
    def has_own_loss(self) -> bool:
        """Whether its ``loss`` may be another than the task's."""
        return type(self).loss is not Fusion.loss

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return what its training minimises: the task's loss, unless it has more of its own.

        Those read what ``forward`` gives after the logits while training.
        """
        return head.loss(logits_of(output), labels)

    def sharpen(self, factor: float) -> None:
        """Multiply the scores of regions by ``factor``, see ``TaskHead.sharpness``."""
        raise TypeError(f"{type(self).__name__} says nothing of regions")

    def timed_parts(self) -> Sequence[nn.Module]:
        """Return the modules that do its work, none inside another, each timed once by itself.

        Networks of one space share most of theirs. By default it is one part.
        """
        return (self,)

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, K) from one pooled feature (B, L, C_raw) for each of ``features``."""
        raise TypeError(f"{type(self).__name__} does not define what it computes")
