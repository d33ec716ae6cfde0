"""Images: a small residual network of two-dimensional convolutions (He et al., 2016)."""

from __future__ import annotations

from typing import ClassVar

from bmnas.backbones.base import InputSpec
from bmnas.backbones.pixels import PixelBackbone
from bmnas.tasks.task import ModalityType

_WIDTHS = (16, 32, 64, 96, 128)
_LARGE = 96  # pixels on the longer side from which a fourth stage pays
_LIMIT = 48  # pixels on a side that the stages see at most


class ImageBackbone(PixelBackbone):
    """A residual network for images (B, H, W) or (B, H, W, 3), uint8 or float32.

    Features are maps (B, C_raw, H', W'), three of them, four from 96 pixels on.
    """

    family: ClassVar[str] = "cnn"
    types: ClassVar[tuple[ModalityType, ...]] = ("image",)
    axes: ClassVar[int] = 2

    def plan(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the widths, first layer and stages, and the limits of height and width."""
        return (_WIDTHS if max(sizes) >= _LARGE else _WIDTHS[:-1]), (_LIMIT, _LIMIT)

    def input_spec(self) -> InputSpec:
        """Return what the network expects: raw pixels."""
        meaning = "one image, rows from the top, raw pixel values"
        return InputSpec(self.shape, self.dtype, meaning, self.pixels_note("HW"))
