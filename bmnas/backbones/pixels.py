"""What images and clips share: raw pixels in, channels-first floats inside.

Legend: B batch, T time, H height, W width, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bmnas.backbones.conv import ConvBackbone, Downsampling, Standardise
from bmnas.backbones.rows import (
    cast_rows,
    network_dtype,
    require_colour,
    require_rows,
    sample_rows,
    value_range,
)
from bmnas.tasks.task import Array, Modality


class Pixels(nn.Module):
    """Raw pixels to channels-first floats: (B, *positions) or (B, *positions, 3) to (B, C, …).

    uint8 is divided by 255; floats keep their values.
    """

    def __init__(self, *, colour: bool, dtype: str) -> None:
        super().__init__()
        self.colour = colour
        self.scale = 1 / 255 if dtype == "uint8" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 (B, C, *positions)."""
        # The cast comes first: not every runtime moves the axes of a uint8 tensor.
        x = x.to(torch.float32) * self.scale
        return torch.movedim(x, -1, 1) if self.colour else x.unsqueeze(1)


class PixelBackbone(ConvBackbone):
    """A residual network for rows of pixels (*positions) or (*positions, 3), uint8 or float32.

    ``shape`` is that of one row, ``value_range`` what the train rows span. Subclasses say how
    many axes of positions there are, ``axes``, and which ``plan`` of widths suits their sizes.
    """

    axes: ClassVar[int]

    def __init__(
        self,
        *,
        classes: int,
        shape: Sequence[int],
        dtype: str,
        value_range: Sequence[float],
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.dtype = dtype
        self.config = {
            "classes": classes,
            "shape": list(shape),
            "dtype": dtype,
            "value_range": list(value_range),
            "dropout": dropout,
        }
        widths, limits = self.plan(self.shape[: self.axes])
        colour = len(self.shape) > self.axes
        channels = 3 if colour else 1
        self.build(
            Pixels(colour=colour, dtype=dtype),
            Standardise(channels, self.axes + 2),
            Downsampling(self.shape[: self.axes], limits, len(widths) - 1),
            channels=channels,
            widths=widths,
            classes=classes,
            dropout=dropout,
        )

    def plan(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the widths, first layer and stages, and the axes' limits for ``sizes``."""
        raise TypeError(f"{type(self).__name__} has no plan")

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from train ``rows`` (n, *positions) or (n, *positions, 3).

        Raises UserError when the rows are none, of the wrong shape or not finite.
        """
        require_rows(modality, rows, (cls.axes, cls.axes + 1))
        require_colour(modality, rows, cls.axes + 1)
        dtype = network_dtype(modality, rows, "uint8")
        span = [0.0, 255.0] if dtype == "uint8" else value_range(sample_rows(rows))
        backbone = cls(classes=classes, shape=rows.shape[1:], dtype=dtype, value_range=span)
        backbone.fit(modality, rows)
        return backbone

    def encode(self, rows: Array) -> Array:
        """Return ``rows`` (n, *shape) as uint8 or float32, otherwise unchanged.

        Raises UserError when the rows have another shape than those the backbone was built for.
        """
        return cast_rows(rows, self.shape, self.dtype)

    def pixels_note(self, positions: str) -> dict[str, Any]:
        """Return the preprocessing note; ``positions`` names the axes of positions."""
        colour = len(self.shape) > self.axes
        return {
            "layout": positions + ("C" if colour else ""),
            "colours": "RGB" if colour else "grey",
            "value_range": self.config["value_range"],
            "scaling": "none: the network scales and standardises its input",
        }
