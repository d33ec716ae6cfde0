"""Vectors: a residual multilayer perceptron.

Legend: B batch, D columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from bmnas.backbones.base import Backbone, InputSpec, PooledHead
from bmnas.backbones.conv import Standardise, Stem
from bmnas.backbones.rows import cast_rows, network_dtype, require_finite, require_rows, sample_rows
from bmnas.tasks.task import Array, Modality, ModalityType

_WIDTH = 128
_STAGES = 3


class Floats(nn.Module):
    """Numbers of any type to float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` as float32."""
        return x.to(torch.float32)


class DenseStage(nn.Module):
    """x + dropout(ReLU(LayerNorm(linear(x)))) on vectors (B, C)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(channels, channels),
            nn.LayerNorm(channels),
            nn.ReLU(),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C)."""
        out: Tensor = x + self.body(x)
        return out


class VectorBackbone(Backbone):
    """A multilayer perceptron for vectors (B, D), float32.

    Each column is standardised by itself and clamped, so that neither a unit nor an outlier
    matters. Features are three vectors (B, C_raw).
    """

    family: ClassVar[str] = "mlp"
    types: ClassVar[tuple[ModalityType, ...]] = ("vector",)

    def __init__(self, *, classes: int, shape: Sequence[int], dropout: float = 0.2) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.config = {"classes": classes, "shape": list(shape), "dropout": dropout}
        (columns,) = self.shape
        entry = nn.Sequential(nn.Linear(columns, _WIDTH), nn.ReLU())
        self.stem = Stem(Floats(), Standardise(columns, 2), entry)
        self.stages = nn.ModuleList(DenseStage(_WIDTH, dropout) for _ in range(_STAGES))
        self.feature_names = tuple(str(number) for number in range(1, _STAGES + 1))
        self.feature_channels = (_WIDTH,) * _STAGES
        self.head = PooledHead(_WIDTH, classes, dropout)

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from train vectors ``rows`` (n, D).

        Raises UserError when the rows are none, of the wrong shape or not finite.
        """
        require_rows(modality, rows, (1,))
        network_dtype(modality, rows)
        backbone = cls(classes=classes, shape=rows.shape[1:])
        sample = backbone.encode(sample_rows(rows))
        require_finite(modality, sample)
        cast(Stem, backbone.stem).fit(sample)
        return backbone

    def encode(self, rows: Array) -> Array:
        """Return vectors ``rows`` (n, D) as float32.

        Raises UserError when the rows have another shape than those the backbone was built for.
        """
        return cast_rows(rows, self.shape, "float32")

    def input_spec(self) -> InputSpec:
        """Return what the network expects: numbers in their own units."""
        note = {"scaling": "none: the network standardises each column"}
        meaning = f"{self.shape[0]} numbers in the data's units and order"
        return InputSpec(self.shape, "float32", meaning, note)
