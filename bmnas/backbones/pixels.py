"""Images and clips: small residual networks on raw pixels (He et al., 2016).

Legend: B batch, T time, H height, W width, C channels, K classes; positions are H, W or T, H, W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bmnas.backbones.base import InputSpec
from bmnas.backbones.conv import ConvBackbone, Standardise
from bmnas.backbones.rows import has_colour, sample_rows
from bmnas.tasks.task import Array, Modality, ModalityType


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


class PixelBackbone(ConvBackbone, ABC):
    """A residual network for rows of pixels (*positions) or (*positions, 3), uint8 or float32.

    ``shape`` is that of one row, ``value_range`` what the train rows span. Subclasses name the
    axes of positions, ``layout``, and ``plan`` widths that suit their sizes.
    """

    layout: ClassVar[str]

    def __init__(
        self,
        *,
        classes: int,
        shape: Sequence[int],
        dtype: str,
        value_range: Sequence[float],
        dropout: float = 0.1,
    ) -> None:
        what = {"shape": list(shape), "dtype": dtype, "value_range": list(value_range)}
        super().__init__(classes=classes, **what, dropout=dropout)
        self.shape, self.dtype = tuple(shape), dtype
        self.colour = has_colour(self.types[0], self.shape)
        sizes = self.shape[: len(self.layout)]
        widths, limits = self.plan(sizes)
        channels = 3 if self.colour else 1
        self.build(
            Pixels(colour=self.colour, dtype=dtype),
            Standardise(channels, len(sizes) + 2),
            channels=channels,
            sizes=sizes,
            limits=limits,
            widths=widths,
        )

    @abstractmethod
    def plan(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return widths, the first layer's and the stages', and what stages see of ``sizes``."""

    @abstractmethod
    def meaning(self) -> str:
        """Return what one row is, for the person who writes a client."""

    @classmethod
    def facts(cls, modality: Modality, rows: Array, dtype: str) -> dict[str, Any]:
        """Return dtype and range of the values."""
        sample = sample_rows(rows)
        span = [float(sample.min()), float(sample.max())]
        return {"dtype": dtype, "value_range": [0.0, 255.0] if dtype == "uint8" else span}

    def input_spec(self) -> InputSpec:
        """Return what the network expects: raw pixels."""
        note = {
            "layout": self.layout + ("C" if self.colour else ""),
            "colours": "RGB" if self.colour else "grey",
            "value_range": self.config["value_range"],
            "scaling": "none: the network scales and standardises its input",
        }
        return InputSpec(self.shape, self.dtype, self.meaning(), note)


class ImageBackbone(PixelBackbone):
    """A residual network for images (B, H, W) or (B, H, W, 3), uint8 or float32.

    Features are maps (B, C_raw, H', W'), three of them, four from 96 pixels on.
    """

    family: ClassVar[str] = "cnn"
    types: ClassVar[tuple[ModalityType, ...]] = ("image",)
    layout: ClassVar[str] = "HW"

    def plan(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the widths, and at most 48 pixels on a side; large images get a fourth stage."""
        return (16, 32, 64, 96, 128) if max(sizes) >= 96 else (16, 32, 64, 96), (48, 48)

    def meaning(self) -> str:
        """Return what one row is."""
        return "one image, rows from the top, raw pixel values"


class ClipBackbone(PixelBackbone):
    """A residual network for clips (B, T, H, W) or (B, T, H, W, 3), uint8 or float32.

    Features are three clips (B, C_raw, T', H', W').
    """

    family: ClassVar[str] = "cnn3d"
    types: ClassVar[tuple[ModalityType, ...]] = ("clip",)
    layout: ClassVar[str] = "THW"

    def plan(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the widths, and at most 16 frames of 28 times 28 pixels."""
        return (16, 32, 64, 96), (16, 28, 28)

    def meaning(self) -> str:
        """Return what one row is."""
        return f"one clip of {self.shape[0]} frames in order of time, raw pixel values"
