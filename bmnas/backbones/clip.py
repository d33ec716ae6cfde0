"""Clips, a few frames of video: a small residual network of three-dimensional convolutions."""

from __future__ import annotations

from typing import ClassVar

from bmnas.backbones.base import InputSpec
from bmnas.backbones.pixels import PixelBackbone
from bmnas.tasks.task import ModalityType

_WIDTHS = (16, 32, 64, 96)
_LIMITS = (16, 28, 28)  # frames, pixels, pixels that the stages see at most


class ClipBackbone(PixelBackbone):
    """A residual network for clips (B, T, H, W) or (B, T, H, W, 3), uint8 or float32.

    Features are three clips (B, C_raw, T', H', W').
    """

    family: ClassVar[str] = "cnn3d"
    types: ClassVar[tuple[ModalityType, ...]] = ("clip",)
    axes: ClassVar[int] = 3

    def plan(self, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the widths, first layer and stages, and the limits of time, height, width."""
        return _WIDTHS, _LIMITS

    def input_spec(self) -> InputSpec:
        """Return what the network expects: the raw pixels of every frame."""
        meaning = f"one clip of {self.shape[0]} frames in order of time, raw pixel values"
        return InputSpec(self.shape, self.dtype, meaning, self.pixels_note("THW"))
