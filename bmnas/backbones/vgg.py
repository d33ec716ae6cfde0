"""VGG-19 (Simonyan and Zisserman, 2015, arXiv 1409.1556) for images.

Legend: B batch, H height, W width, C_raw channels of a feature, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from bmnas.backbones.published import PublishedPixels, chain, initialise
from bmnas.machine.errors import UserError
from bmnas.tasks.task import ModalityType

_CONVOLUTIONS = (2, 2, 4, 4, 4)  # of each block; a maximum over 2 x 2 follows
#: Numbers of the layers after the first and the last convolution of block 4, after the third of
#: block 5, and after block 5: BM-NAS's program takes its maps there.
_ENDS = (21, 27, 34, 37)
_SMALLEST = 32  # pixels, which five blocks halve to one


class VGG19Backbone(PublishedPixels):
    """VGG-19 without its three dense layers, for images (B, H, W) or (B, H, W, 3).

    ``width`` is that of block 1. Features are four maps (B, 8 width, H', W'), H' and W' an eighth
    of H and W, an eighth, a sixteenth and a thirty-second. The head, as BM-NAS's program has it,
    averages the last map, normalises and maps to K. Raises UserError below 32 pixels a side.
    """

    family: ClassVar[str] = "vgg19"
    types: ClassVar[tuple[ModalityType, ...]] = ("image",)
    published: ClassVar[str] = "torchvision's vgg19, or BM-NAS's GP_VGG"
    prefixes = MappingProxyType({"features.": "", "vgg.": ""})
    left_out = r"classifier\.\d"

    def __init__(self, *, classes: int, shape: Sequence[int], dtype: str, width: int = 64) -> None:
        super().__init__(classes=classes, shape=shape, dtype=dtype, width=width)
        if min(shape[:2]) < _SMALLEST:
            raise UserError(
                f"received images of {shape[0]} x {shape[1]} pixels for backbone {self.family!r}, "
                f"expected {_SMALLEST} or more a side"
            )
        layers: list[nn.Module] = []
        channels = 3
        for block, convolutions in enumerate(_CONVOLUTIONS):
            for _ in range(convolutions):
                wider = width * min(2**block, 8)
                layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU(inplace=True)]
                channels = wider
            layers.append(nn.MaxPool2d(2))
        convolutional = nn.Sequential(*layers)
        head = chain(
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            bn4=nn.BatchNorm1d(channels),
            classifier=nn.Linear(channels, classes),
        )
        self.set_stages(
            chain(**self.reader()),
            [convolutional[start:end] for start, end in pairwise((0, *_ENDS))],
            (channels,) * len(_ENDS),
            head,
        )
        initialise(self)
