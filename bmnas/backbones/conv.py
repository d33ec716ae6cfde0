"""What the convolutional families share: standardised input, residual stages, a pooled head.

Legend: B batch, C channels, rest one to three axes of positions, K classes. All maps are
channels-first, (B, C, *rest). Strides follow from the input's size, so that eight pixels and
a hundred and sixty both end as a small map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.backbones.base import Backbone, PooledHead
from bmnas.backbones.rows import check_rows, require_finite, sample_rows
from bmnas.tasks.task import Array, Modality

_CONV: dict[int, Callable[..., nn.Module]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_NORM: dict[int, Callable[..., nn.Module]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}

_CLAMP = 10.0  # standard deviations
_TAILS = (0.005, 0.995)
_SMALLEST_HALVED = 6  # an axis of 6 positions still becomes 3; shorter ones keep their length


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
    """Raw input to standardised channels-first floats, then a first layer ``entry``.

    ``prepare`` turns the raw input into float (B, C, *rest); it may be an ``nn.Identity``.
    """

    def __init__(self, prepare: nn.Module, standardise: Standardise, entry: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare
        self.standardise = standardise
        self.entry = entry

    def fit(self, rows: Array) -> None:
        """Fit the standardisation to encoded train ``rows`` (n, *shape), in evaluation mode."""
        with torch.no_grad():
            self.standardise.fit(self.prepare(torch.from_numpy(rows)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the first layer's output (B, C, *rest)."""
        x = self.standardise(self.prepare(x))
        out: Tensor = self.entry(x.to(next(self.entry.parameters()).dtype))
        return out


class ResidualStage(nn.Module):
    """Two convolutions of width 3 with BatchNorm and ReLU around a shortcut (He et al., 2016).

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


def strides_for(
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


class FittedBackbone(Backbone):
    """A backbone whose stem standardises its input by the train rows.

    Subclasses take ``shape``, and what ``facts`` returns, as keywords.
    """

    stem: Stem

    @classmethod
    def facts(cls, modality: Modality, rows: Array, dtype: str) -> dict[str, Any]:
        """Return what else than the shape is taken from ``rows``, which enter as ``dtype``."""
        return {}

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from the train ``rows`` (n, *axes) of ``modality``.

        Raises UserError when the rows are none, of the wrong shape or not finite.
        """
        facts = cls.facts(modality, rows, check_rows(modality, rows))
        made: Any = cls  # each family has its own keywords
        backbone: Self = made(classes=classes, shape=list(rows.shape[1:]), **facts)
        sample = backbone.encode(sample_rows(rows))
        require_finite(modality, sample)
        backbone.eval().fit(sample)
        return backbone

    def fit(self, sample: Array) -> None:
        """Fit the standardisation to encoded train rows ``sample`` (n, *shape)."""
        self.stem.fit(sample)


class ConvBackbone(FittedBackbone):
    """A backbone of residual stages; families fill it in with ``build``.

    ``classes`` and ``dropout`` of the head are among their keywords.
    """

    def build(
        self,
        prepare: nn.Module,
        standardise: Standardise,
        *,
        channels: int,
        sizes: Sequence[int],
        limits: Sequence[int],
        widths: Sequence[int],
    ) -> None:
        """Set up stem, stages and head.

        ``channels`` and ``sizes`` are those of the prepared input, ``limits`` what the stages see
        of each size at most, ``widths`` the first layer's and each stage's.
        """
        first, later = strides_for(sizes, limits, len(widths) - 1)
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
        self.set_stages(Stem(prepare, standardise, entry), stages, widths[1:], head)
        if len(first) == 2:
            # A third to a half of a training step's time on CPUs; the maps follow the weights.
            for parameter in self.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
