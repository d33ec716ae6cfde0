"""Sequences of measurements: a small residual network of one-dimensional convolutions.

Legend: B batch, T time, D measurements at a time, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from bmnas.backbones.base import InputSpec
from bmnas.backbones.conv import ConvBackbone, Downsampling, Standardise
from bmnas.backbones.rows import cast_rows, network_dtype, require_rows
from bmnas.tasks.task import Array, Modality, ModalityType

_WIDTHS = (64, 64, 96, 128)
_LIMIT = 256  # positions in time that the stages see at most


class ChannelsFirst(nn.Module):
    """(B, T, D) of any number type to float32 (B, D, T)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, D, T)."""
        return x.to(torch.float32).transpose(1, 2)


class SequenceBackbone(ConvBackbone):
    """A residual network for sequences (B, T, D), float32.

    Each of the D columns is standardised by itself. Features are three sequences
    (B, C_raw, T').
    """

    family: ClassVar[str] = "conv1d"
    types: ClassVar[tuple[ModalityType, ...]] = ("sequence",)

    def __init__(self, *, classes: int, shape: Sequence[int], dropout: float = 0.1) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.config = {"classes": classes, "shape": list(shape), "dropout": dropout}
        time, columns = self.shape
        self.build(
            ChannelsFirst(),
            Standardise(columns, 3),
            Downsampling((time,), (_LIMIT,), len(_WIDTHS) - 1),
            channels=columns,
            widths=_WIDTHS,
            classes=classes,
            dropout=dropout,
        )

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from train sequences ``rows`` (n, T, D).

        Raises UserError when the rows are none, of the wrong shape or not finite.
        """
        require_rows(modality, rows, (2,))
        network_dtype(modality, rows)
        backbone = cls(classes=classes, shape=rows.shape[1:])
        backbone.fit(modality, rows)
        return backbone

    def encode(self, rows: Array) -> Array:
        """Return sequences ``rows`` (n, T, D) as float32.

        Raises UserError when the rows have another shape than those the backbone was built for.
        """
        return cast_rows(rows, self.shape, "float32")

    def input_spec(self) -> InputSpec:
        """Return what the network expects: measurements in their own units."""
        time, columns = self.shape
        note = {
            "layout": "TD",
            "scaling": "none: the network standardises each column",
        }
        meaning = f"{time} steps in order of time, {columns} measurements each, in the data's units"
        return InputSpec(self.shape, "float32", meaning, note)
