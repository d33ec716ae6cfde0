"""The perceptron of GMU for vectors of text (Arevalo et al., 2017, arXiv 1702.01992).

Its units are maxouts (Goodfellow et al., 2013, arXiv 1302.4389).
Legend: B batch, D columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from bmnas.backbones.base import InputSpec
from bmnas.backbones.conv import Floats
from bmnas.backbones.published import PublishedBackbone, chain
from bmnas.tasks.task import ModalityType


class Maxout(nn.Module):
    """The maximum of ``pool`` linear maps: (B, C_in) to (B, C)."""

    def __init__(self, channels_in: int, channels: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.lin = nn.Linear(channels_in, channels * pool)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C)."""
        found: Tensor = self.lin(x).unflatten(1, (-1, self.pool)).amax(-1)
        return found


class MaxoutBackbone(PublishedBackbone):
    """Two layers of maxouts for vectors (B, D), float32, which are not standardised.

    Features are both hidden layers, (B, width) and (B, 2 width), before their BatchNorm.
    """

    family: ClassVar[str] = "maxout"
    types: ClassVar[tuple[ModalityType, ...]] = ("vector",)
    published: ClassVar[str] = "BM-NAS's MaxOut_MLP"

    def __init__(
        self,
        *,
        classes: int,
        shape: Sequence[int],
        width: int = 64,
        pool: int = 5,
        dropout: float = 0.5,
    ) -> None:
        (columns,) = shape
        spec = InputSpec(
            (columns,), "float32", f"{columns} numbers, such as the mean word2vec of a text"
        )
        super().__init__(
            spec, classes=classes, shape=list(shape), width=width, pool=pool, dropout=dropout
        )

        def normalised(channels: int) -> nn.Module:
            return nn.Sequential(nn.BatchNorm1d(channels), nn.Dropout(dropout))

        first = chain(op1=Maxout(columns, width, pool))
        second = chain(op2=normalised(width), op3=Maxout(width, 2 * width, pool))
        head = chain(op4=normalised(2 * width), hid2val=nn.Linear(2 * width, classes))
        self.set_stages(Floats(), [first, second], (width, 2 * width), head)
