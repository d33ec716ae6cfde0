"""Residual networks (He et al., 2016) for images, clips and sequences; a perceptron for vectors.

Legend: B batch, T time, H height, W width, D columns, C channels, K classes, rest one to three axes
of positions. Maps are channels-first, (B, C, *rest). Strides follow from the input's size, so that
eight pixels and a hundred and sixty both end as a small map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.backbones.base import Backbone, InputSpec, PooledHead, has_colour, row_dtype
from bmnas.tasks.task import Array, Modality, ModalityType

_CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, Callable[..., nn.Module]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}

_CLAMP = 10.0  # standard deviations
_TAILS = (0.005, 0.995)
_SMALLEST_HALVED = 6  # an axis of 6 positions still becomes 3; shorter ones keep their length
_LARGE_IMAGE = 96  # pixels on a side, from which on an image gets a fourth stage


class Standardise(nn.Module):
    """Subtract a mean and divide by a deviation for each channel, then clamp to ±10.

    Both come from the train rows by ``fit``, and are saved with the weights. Extreme values
    would stretch the deviation until everything else is zero: the outer half per cent at each
    end is clipped before it is taken. A constant channel becomes zero. ``rank`` counts the axes
    of the input, the batch included; channels lie on ``axis``.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, rank: int, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        shape = [channels if place == axis else 1 for place in range(1, rank)]
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def fit(self, x: Tensor) -> None:
        """Take mean and deviation from a sample ``x`` of the input."""
        values = x.detach().double().movedim(self.axis, 0).flatten(1).numpy()
        low, high = np.quantile(values, _TAILS, axis=1, keepdims=True)
        clipped = np.clip(values, low, high)
        # A sparse channel, nearly always zero, is constant once its tails are gone.
        plain = np.where(np.ptp(clipped, axis=1, keepdims=True) > 0, clipped, values)
        mean, deviation = plain.mean(axis=1), plain.std(axis=1)
        # Rounding leaves a deviation of a billionth of the mean where nothing varies.
        deviation[deviation <= 1e-7 * np.abs(mean)] = 1.0
        self.mean.copy_(torch.from_numpy(mean).view_as(self.mean))
        self.deviation.copy_(torch.from_numpy(deviation).view_as(self.deviation))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised ``x``, in the shape it came in."""
        return ((x - self.mean) / self.deviation).clamp(-_CLAMP, _CLAMP)


class Stem(nn.Module):
    """Raw input to floats by ``prepare``, standardised, through a first layer ``entry``."""

    def __init__(self, prepare: nn.Module, standardise: Standardise, entry: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare
        self.standardise = standardise
        self.entry = entry

    def forward(self, x: Tensor) -> Tensor:
        """Return the first layer's output (B, C, *rest)."""
        x = self.standardise(self.prepare(x))
        out: Tensor = self.entry(x.to(next(self.entry.parameters()).dtype))
        return out


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


class ResidualStage(nn.Module):
    """Two convolutions of width 3 with BatchNorm and ReLU around a shortcut.

    The first convolution has the stride; the shortcut is a strided convolution of width 1.
    """

    def __init__(self, channels_in: int, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        axes, step = len(stride), tuple(stride)
        conv, norm = _CONV[axes], _NORM[axes]
        self.body = nn.Sequential(
            conv(channels_in, channels, 3, step, 1, bias=False),
            norm(channels),
            nn.ReLU(),
            conv(channels, channels, 3, 1, 1, bias=False),
            norm(channels),
        )
        self.shortcut = nn.Sequential(
            conv(channels_in, channels, 1, step, bias=False), norm(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, *rest), not negative."""
        out: Tensor = (self.body(x) + self.shortcut(x)).relu()
        return out


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


class FittedBackbone(Backbone):
    """A backbone whose stem standardises its input by the train rows.

    Its keywords are ``classes``, ``shape`` of one row, ``dropout``, and what ``facts`` returns.
    """

    stem: Stem

    @classmethod
    def facts(cls, modality: Modality, rows: Array) -> dict[str, Any]:
        """Return what else than the shape of ``rows`` is taken from them and ``modality``."""
        return {}

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from the train ``rows`` (n, *axes) of ``modality``."""
        made: Any = cls  # each family has its own keywords
        facts = cls.facts(modality, rows)
        backbone: Self = made(classes=classes, shape=list(rows.shape[1:]), **facts)
        backbone.eval().fit(backbone.encode(rows))
        return backbone

    def fit(self, sample: Array) -> None:
        """Fit the standardisation to encoded train rows ``sample`` (n, *shape)."""
        with torch.no_grad():
            self.stem.standardise.fit(self.stem.prepare(torch.from_numpy(sample)))


class ConvBackbone(FittedBackbone):
    """A backbone of residual stages, which families set up with ``build``.

    ``widths`` are the first layer's and each stage's; ``limits`` say how many positions of each
    axis the stages see at most.
    """

    widths: ClassVar[tuple[int, ...]] = (16, 32, 64, 96)
    limits: ClassVar[tuple[int, ...]]

    def build(
        self, prepare: nn.Module, sizes: Sequence[int], *, axis: int = 1, more: Sequence[int] = ()
    ) -> None:
        """Set up stem, stages and head.

        ``sizes`` are those of what ``prepare`` returns, channels first; ``axis`` is the one that is
        standardised (0 is the batch), ``more`` the widths of further stages.
        """
        channels, *positions = sizes
        widths = (*self.widths, *more)
        first, later = _strides(positions, self.limits, len(widths) - 1)
        kernel = tuple(2 * stride + 1 for stride in first)
        conv, norm = _CONV[len(first)], _NORM[len(first)]
        entry = nn.Sequential(
            conv(channels, widths[0], kernel, first, first, bias=False), norm(widths[0]), nn.ReLU()
        )
        stages = [
            ResidualStage(width_in, width, stride)
            for width_in, width, stride in zip(widths[:-1], widths[1:], later, strict=True)
        ]
        head = PooledHead(widths[-1], self.config["classes"], self.config["dropout"])
        standardise = Standardise(sizes[axis - 1], len(sizes) + 1, axis)
        self.set_stages(Stem(prepare, standardise, entry), stages, widths[1:], head)
        if len(first) == 2:
            # A third to a half of a training step's time on CPUs; the maps follow the weights.
            for parameter in self.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class SequenceBackbone(ConvBackbone):
    """A residual network for sequences (B, T, D), float32, each column standardised by itself.

    Features are three sequences (B, C_raw, T').
    """

    family: ClassVar[str] = "conv1d"
    types: ClassVar[tuple[ModalityType, ...]] = ("sequence",)
    widths = (64, 64, 96, 128)
    limits = (256,)

    def __init__(self, *, classes: int, shape: Sequence[int], dropout: float = 0.1) -> None:
        time, columns = shape
        note = {"layout": "TD", "scaling": "none: the network standardises each column"}
        meaning = f"{time} steps in order of time, {columns} measurements each, in the data's units"
        spec = InputSpec((time, columns), "float32", meaning, note)
        super().__init__(spec, classes=classes, shape=list(shape), dropout=dropout)
        self.build(Floats(transposed=True), (columns, time))


class VectorBackbone(FittedBackbone):
    """A multilayer perceptron for vectors (B, D), float32.

    Each column is standardised by itself and clamped, so that neither a unit nor an outlier
    matters. Features are three vectors (B, C_raw).
    """

    family: ClassVar[str] = "mlp"
    types: ClassVar[tuple[ModalityType, ...]] = ("vector",)
    width, count = 128, 3

    def __init__(self, *, classes: int, shape: Sequence[int], dropout: float = 0.2) -> None:
        (columns,) = shape
        note = {"scaling": "none: the network standardises each column"}
        meaning = f"{columns} numbers in the data's units and order"
        spec = InputSpec((columns,), "float32", meaning, note)
        super().__init__(spec, classes=classes, shape=list(shape), dropout=dropout)
        entry = nn.Sequential(nn.Linear(columns, self.width), nn.ReLU())
        stem = Stem(Floats(), Standardise(columns, 2), entry)
        stages = [DenseStage(self.width, dropout) for _ in range(self.count)]
        head = PooledHead(self.width, classes, dropout)
        self.set_stages(stem, stages, (self.width,) * self.count, head)


def pixel_spec(
    type_: ModalityType, shape: Sequence[int], dtype: str, value_range: Sequence[float]
) -> InputSpec:
    """Return what an image or a clip of ``shape`` is to a network that scales it by itself."""
    colour = has_colour(type_, tuple(shape))
    layout, what = "HW", "one image, rows from the top"
    if type_ == "clip":
        layout, what = "THW", f"one clip of {shape[0]} frames in order of time"
    note = {
        "layout": layout + ("C" if colour else ""),
        "colours": "RGB" if colour else "grey",
        "value_range": list(value_range),
        "scaling": "none: the network scales and standardises its input",
    }
    return InputSpec(tuple(shape), dtype, f"{what}, raw pixel values", note)


class PixelBackbone(ConvBackbone):
    """A residual network for rows of pixels (*positions) or (*positions, 3), uint8 or float32.

    ``shape`` is that of one row, ``value_range`` what the train rows span.
    """

    def __init__(
        self,
        *,
        classes: int,
        shape: Sequence[int],
        dtype: str,
        value_range: Sequence[float],
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            pixel_spec(self.types[0], shape, dtype, value_range),
            classes=classes,
            shape=list(shape),
            dtype=dtype,
            value_range=list(value_range),
            dropout=dropout,
        )
        colour = has_colour(self.types[0], tuple(shape))
        positions = shape[: len(self.limits)]
        more = (128,) if len(positions) == 2 and max(positions) >= _LARGE_IMAGE else ()
        prepare = Pixels(colour=colour, dtype=dtype)
        self.build(prepare, (3 if colour else 1, *positions), more=more)

    @classmethod
    def facts(cls, modality: Modality, rows: Array) -> dict[str, Any]:
        """Return dtype and range of the values."""
        dtype, span = row_dtype(modality.type, rows), [float(rows.min()), float(rows.max())]
        return {"dtype": dtype, "value_range": [0.0, 255.0] if dtype == "uint8" else span}


class ImageBackbone(PixelBackbone):
    """A residual network for images (B, H, W) or (B, H, W, 3), uint8 or float32.

    Features are maps (B, C_raw, H', W'), three of them, four from 96 pixels on.
    """

    family: ClassVar[str] = "cnn"
    types: ClassVar[tuple[ModalityType, ...]] = ("image",)
    limits = (48, 48)


class ClipBackbone(PixelBackbone):
    """A residual network for clips (B, T, H, W) or (B, T, H, W, 3), uint8 or float32.

    Features are three clips (B, C_raw, T', H', W').
    """

    family: ClassVar[str] = "cnn3d"
    types: ClassVar[tuple[ModalityType, ...]] = ("clip",)
    limits = (16, 28, 28)


def _strides(
    sizes: Sequence[int], limits: Sequence[int], stages: int
) -> tuple[tuple[int, ...], list[list[int]]]:
    """Return strides for an input of ``sizes``: of the first layer, and of each of the stages.

    The first layer brings every axis under its limit in ``limits`` by a power of two; a stage
    halves the axes that have at least six positions.
    """
    first = [1] * len(sizes)
    for axis, (size, limit) in enumerate(zip(sizes, limits, strict=True)):
        while -(-size // first[axis]) > limit:
            first[axis] *= 2
    later: list[list[int]] = []
    left = [-(-size // stride) for size, stride in zip(sizes, first, strict=True)]
    for _ in range(stages):
        later.append([2 if size >= _SMALLEST_HALVED else 1 for size in left])
        left = [-(-size // stride) for size, stride in zip(left, later[-1], strict=True)]
    return tuple(first), later
