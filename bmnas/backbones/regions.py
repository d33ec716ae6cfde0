"""Regions of images: windows of our own network's maps, or what a detector has said of them.

A feature called ``regions`` carries boxes: its last four channels are the corners x1, y1, x2, y2 of
each region, first and last pixel. A region without area is padding.

Legend: B batch, N regions, D numbers of a region, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.backbones.base import Backbone, InputSpec
from bmnas.backbones.conv import ImageBackbone
from bmnas.tasks.task import Array, ModalityType

#: Numbers of a box.
BOX = 4
#: Windows are as large as the cells of these grids, and shifted by half of one: 9 + 25 + 49.
_GRIDS = (2, 3, 4)


def areas(boxes: Tensor) -> Tensor:
    """Return which boxes (…, 4) have an area (…)."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


class RegionHead(nn.Module):
    """Mean and maximum over the regions with an area, then a linear layer."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) from regions (B, C + 4, N)."""
        x, boxes = x[:, :-BOX], x[:, -BOX:]
        mask = areas(boxes.transpose(1, 2)).unsqueeze(1)
        mean = (x * mask).sum(-1) / mask.sum(-1).clamp(min=1)
        # Padding is not among the highest: it has the lowest number there is.
        highest = torch.where(mask, x, x.amin(-1, keepdim=True)).amax(-1)
        logits: Tensor = self.linear(self.dropout(torch.cat([mean, highest], dim=1)))
        return logits


class WindowsBackbone(ImageBackbone):
    """A residual network for images whose maps are averaged over fixed windows.

    Its only feature is (B, C + 4, N), the channels of all of its maps. ``grids`` say which windows
    there are: those of grid g are as large as a cell of g x g, at half a cell's distance, so that
    there are (2 g - 1) squared of them.
    """

    family: ClassVar[str] = "windows"
    types: ClassVar[tuple[ModalityType, ...]] = ("image",)
    boxes: Tensor

    def __init__(
        self,
        *,
        classes: int,
        shape: Sequence[int],
        dtype: str,
        value_range: Sequence[float],
        dropout: float = 0.1,
        grids: Sequence[int] = _GRIDS,
    ) -> None:
        super().__init__(
            classes=classes, shape=shape, dtype=dtype, value_range=value_range, dropout=dropout
        )
        self.config["grids"] = list(grids)
        boxes = windows(shape[0], shape[1], grids)
        # Constants that follow from the configuration: no part of the weights.
        self.register_buffer("boxes", torch.from_numpy(boxes.T).float(), persistent=False)
        with torch.no_grad():
            example = torch.zeros(1, *shape, dtype=getattr(torch, dtype))
            maps = super(WindowsBackbone, self.eval()).features(example)
        for place, each in enumerate(maps):
            cover = torch.from_numpy(shares(boxes, shape[:2], each.shape[2:])).float()
            self.register_buffer(f"cover{place}", cover, persistent=False)
        self.train()
        channels = sum(self.feature_channels)
        self.feature_names, self.feature_channels = ("regions",), (channels + BOX,)
        self.head = RegionHead(channels, classes, dropout)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the regions (B, C + 4, N) of images ``x``."""
        maps = super().features(x)
        pooled = [
            each.flatten(2) @ self.get_buffer(f"cover{place}") for place, each in enumerate(maps)
        ]
        boxes = self.boxes.to(pooled[0].dtype).expand(pooled[0].shape[0], -1, -1)
        return [torch.cat([*pooled, boxes], dim=1)]

    def truncate(self, count: int) -> None:
        """Drop the head: the only feature is of all stages."""
        self.head = None


def windows(height: int, width: int, grids: Sequence[int]) -> Array:
    """Return the corners (N, 4) of the windows of an image, those of the first grid first."""
    found = []
    for cells in grids:
        y, x = np.mgrid[: 2 * cells - 1, : 2 * cells - 1].reshape(2, -1) / 2
        low = np.stack([x * width, y * height]) / cells
        high = low + np.array([[width], [height]]) / cells - 1
        found.append(np.concatenate([low, high]).T)
    return np.concatenate(found)


def shares(boxes: Array, image: Sequence[int], cells: Sequence[int]) -> Array:
    """Return how much of each box (N, 4) each cell of a map covers: (H W, N), columns sum to 1.

    ``image`` are the sizes of the image in pixels, ``cells`` those of the map, H and W.
    """
    along = []
    for axis, (size, count) in enumerate(zip(image, cells, strict=True)):
        edges = np.arange(count + 1) * size / count
        low, high = boxes[:, 1 - axis, None], boxes[:, 3 - axis, None] + 1
        overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        along.append(np.maximum(overlap, 0) / (high - low))
    rows, columns = along
    return np.asarray(np.einsum("nh,nw->hwn", rows, columns).reshape(-1, len(boxes)))


class RegionsBackbone(Backbone):
    """Regions that a detector has found, rows (N, D + 4) float32, as they are.

    Its only feature is (B, D + 4, N); only its head has weights.
    """

    family: ClassVar[str] = "regions"
    types: ClassVar[tuple[ModalityType, ...]] = ("regions",)

    def __init__(self, *, classes: int, shape: Sequence[int], dropout: float = 0.1) -> None:
        regions, columns = shape
        note = {"layout": "ND", "boxes": "the last four columns: x1, y1, x2, y2 in pixels"}
        meaning = f"{regions} regions, {columns - BOX} features and a box each; rows of 0 fill up"
        spec = InputSpec((regions, columns), "float32", meaning, note)
        super().__init__(spec, classes=classes, shape=list(shape), dropout=dropout)
        head = RegionHead(columns - BOX, classes, dropout)
        self.set_stages(nn.Identity(), [nn.Identity()], (columns,), head)
        self.feature_names = ("regions",)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the regions (B, D + 4, N) of ``x`` (B, N, D + 4)."""
        return [x.transpose(1, 2)]

    def mask(self, x: Tensor) -> Tensor:
        """Return which regions of ``x`` have an area."""
        return areas(x[..., -BOX:])
