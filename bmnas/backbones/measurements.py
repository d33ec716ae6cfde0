"""Numbers in units of their own: sequences by convolutions, vectors by a multilayer perceptron.

Legend: B batch, T time, D columns of measurements, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from bmnas.backbones.base import InputSpec, PooledHead
from bmnas.backbones.conv import ConvBackbone, FittedBackbone, Standardise, Stem
from bmnas.tasks.task import ModalityType

_WIDTHS = (64, 64, 96, 128)
_LIMIT = 256  # positions in time that the stages see at most
_WIDTH = 128
_STAGES = 3


class Floats(nn.Module):
    """Numbers of any type to float32, times ``scale``; ``transposed``: (B, T, D) to (B, D, T)."""

    def __init__(self, *, scale: float = 1.0, transposed: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` as float32."""
        x = x.to(torch.float32)
        x = x if self.scale == 1 else x * self.scale
        return x.transpose(1, 2) if self.transposed else x


class SequenceBackbone(ConvBackbone):
    """A residual network for sequences (B, T, D), float32.

    Each of the D columns is standardised by itself. Features are three sequences
    (B, C_raw, T').
    """

    family: ClassVar[str] = "conv1d"
    types: ClassVar[tuple[ModalityType, ...]] = ("sequence",)
    dtype = "float32"

    def __init__(self, *, classes: int, shape: Sequence[int], dropout: float = 0.1) -> None:
        super().__init__(classes=classes, shape=list(shape), dropout=dropout)
        self.shape = tuple(shape)
        time, columns = self.shape
        self.build(
            Floats(transposed=True),
            Standardise(columns, 3),
            channels=columns,
            sizes=(time,),
            limits=(_LIMIT,),
            widths=_WIDTHS,
        )

    def input_spec(self) -> InputSpec:
        """Return what the network expects: measurements in their own units."""
        time, columns = self.shape
        note = {"layout": "TD", "scaling": "none: the network standardises each column"}
        meaning = f"{time} steps in order of time, {columns} measurements each, in the data's units"
        return InputSpec(self.shape, "float32", meaning, note)


class DenseStage(nn.Module):
    """x + dropout(ReLU(LayerNorm(linear(x)))) on vectors (B, C)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        linear = nn.Linear(channels, channels)
        self.body = nn.Sequential(linear, nn.LayerNorm(channels), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C)."""
        out: Tensor = x + self.body(x)
        return out


class VectorBackbone(FittedBackbone):
    """A multilayer perceptron for vectors (B, D), float32.

    Each column is standardised by itself and clamped, so that neither a unit nor an outlier
    matters. Features are three vectors (B, C_raw).
    """

    family: ClassVar[str] = "mlp"
    types: ClassVar[tuple[ModalityType, ...]] = ("vector",)
    dtype = "float32"

    def __init__(self, *, classes: int, shape: Sequence[int], dropout: float = 0.2) -> None:
        super().__init__(classes=classes, shape=list(shape), dropout=dropout)
        self.shape = tuple(shape)
        (columns,) = self.shape
        entry = nn.Sequential(nn.Linear(columns, _WIDTH), nn.ReLU())
        stem = Stem(Floats(), Standardise(columns, 2), entry)
        stages = [DenseStage(_WIDTH, dropout) for _ in range(_STAGES)]
        head = PooledHead(_WIDTH, classes, dropout)
        self.set_stages(stem, stages, (_WIDTH,) * _STAGES, head)

    def input_spec(self) -> InputSpec:
        """Return what the network expects: numbers in their own units."""
        note = {"scaling": "none: the network standardises each column"}
        meaning = f"{self.shape[0]} numbers in the data's units and order"
        return InputSpec(self.shape, "float32", meaning, note)
