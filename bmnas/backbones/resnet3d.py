"""Residual networks for clips: Inflated ResNet-50 and 3D ResNeXt-101.

Legend: B batch, T time, H height, W width, C_raw channels of a feature, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.backbones.published import PublishedPixels, chain, initialise
from bmnas.tasks.task import ModalityType

Stride = tuple[int, int, int]


class Bottleneck(nn.Module):
    """Convolutions of width 1, 3 and 1 with BatchNorm and ReLU around a shortcut.

    The second has the stride and ``groups``; ``inner`` channels lie between them. The shortcut is a
    strided convolution of width 1 where channels or positions change.
    """

    def __init__(
        self, channels_in: int, inner: int, channels: int, stride: Stride, groups: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3 = nn.Conv3d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if channels_in != channels or max(stride) > 1:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm3d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, T', H', W'), not negative."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.bn3(self.conv3(y)) + self.downsample(x))
        return out


class ResNet3DBackbone(PublishedPixels):
    """A residual network for clips (B, T, H, W) or (B, T, H, W, 3).

    Features are the maps after layers 2 to 4, (B, 8 width, …), (B, 16 width, …) and (B, 32 width,
    …), and the mean over all positions of the last, (B, 32 width). ``width`` is that of the first
    convolution, which sees ``frames`` at a time, ``inner`` times as wide are the bottlenecks of
    layer 1, and ``time_stride`` is that of the first maximum and of each layer from the second on.
    """

    types: ClassVar[tuple[ModalityType, ...]] = ("clip",)
    blocks: ClassVar[tuple[int, ...]]
    frames: ClassVar[int]
    inner: ClassVar[int]
    time_stride: ClassVar[int]

    def build(self, channels_in: int, groups: int) -> None:
        """Set up stem, stages and head for clips of ``channels_in`` colours."""
        width, channels = self.config["width"], self.config["width"]
        layers: dict[str, nn.Module] = {}
        for number, count in enumerate(self.blocks):
            stride = (self.time_stride, 2, 2) if number else (1, 1, 1)
            inner, wider = self.inner * width * 2**number, 4 * width * 2**number
            parts = []
            for _ in range(count):
                parts.append(Bottleneck(channels, inner, wider, stride, groups))
                channels, stride = wider, (1, 1, 1)
            layers[f"layer{number + 1}"] = nn.Sequential(*parts)
        around = (self.frames // 2, 3, 3)
        window = (3, 3, 3) if self.time_stride > 1 else (1, 3, 3)
        stem = chain(
            **self.reader(channels_in),
            conv1=nn.Conv3d(channels_in, width, (self.frames, 7, 7), (1, 2, 2), around, bias=False),
            bn1=nn.BatchNorm3d(width),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool3d(
                window, (self.time_stride, 2, 2), tuple(size // 2 for size in window)
            ),
        )
        stages = [
            chain(layer1=layers["layer1"], layer2=layers["layer2"]),
            chain(layer3=layers["layer3"]),
            chain(layer4=layers["layer4"]),
            chain(avgpool=nn.AdaptiveAvgPool3d(1), flat=nn.Flatten()),
        ]
        widths = (8 * width, 16 * width, 32 * width, 32 * width)
        self.set_stages(stem, stages, widths, chain(fc=nn.Linear(channels, self.config["classes"])))
        initialise(self)


class InflatedResNet50Backbone(ResNet3DBackbone):
    """ResNet-50 (He et al., 2016) whose 3 x 3 convolutions see three frames as well.

    So does MFAS (Pérez-Rúa et al., 2019); the first convolution sees single frames, and time keeps
    its length. A kernel of two axes becomes the middle frame of one of three, zeros around it:
    every frame is seen as a picture until training on clips says more. Repeated kernels (Carreira
    and Zisserman, 2017) see the zeros beyond the first and the last of few frames.
    """

    family: ClassVar[str] = "inflated_resnet50"
    published: ClassVar[str] = "torchvision's resnet50, or MFAS's or BM-NAS's Visual"
    prefixes = MappingProxyType({"cnn.": "", "classifier.": "fc."})
    blocks, frames, inner, time_stride = (3, 4, 6, 3), 1, 1, 1

    def __init__(self, *, classes: int, shape: Sequence[int], dtype: str, width: int = 64) -> None:
        super().__init__(classes=classes, shape=shape, dtype=dtype, width=width)
        self.build(3, groups=1)

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by their names; those of MFAS have learned blue for red."""
        found = super().renamed(state)
        if "cnn.conv1.weight" in state:
            # Its program normalises frames whose first colour is blue by the numbers of red.
            constants = dict(self.stem[1].named_buffers(prefix="normalise"))  # type: ignore[index]
            found |= {name: tensor.flip(0) for name, tensor in constants.items()}
            found["conv1.weight"] = found["conv1.weight"].flip(1)
        return found

    def fitted(self, name: str, tensor: Tensor, own: Tensor) -> Tensor:
        """Return a kernel of two axes as the middle of one of three."""
        if tensor.dim() == 4 and own.dim() == 5:
            around = own.shape[2] // 2
            return F.pad(tensor.unsqueeze(2), (0, 0, 0, 0, around, around))
        return tensor


class ResNeXt3DBackbone(ResNet3DBackbone):
    """3D ResNeXt-101 (Hara et al., 2018, arXiv 1711.09577): bottlenecks of ``cardinality`` groups.

    A clip without colours is read by kernels with one channel, the mean of published ones.
    """

    family: ClassVar[str] = "resnext101_3d"
    published: ClassVar[str] = "resnext-101 of 3D-ResNets-PyTorch, or of Real-time-GesRec"
    blocks, frames, inner, time_stride = (3, 4, 23, 3), 7, 2, 2
    mean = (114.7748 / 255, 107.7354 / 255, 99.4750 / 255)  # of ActivityNet
    deviation = (1 / 255, 1 / 255, 1 / 255)

    def __init__(
        self,
        *,
        classes: int,
        shape: Sequence[int],
        dtype: str,
        width: int = 64,
        cardinality: int = 32,
    ) -> None:
        super().__init__(
            classes=classes, shape=shape, dtype=dtype, width=width, cardinality=cardinality
        )
        self.build(3 if self.colour else 1, groups=cardinality)

    def fitted(self, name: str, tensor: Tensor, own: Tensor) -> Tensor:
        """Return the first kernel for the channels and frames that are here.

        Published ones for RGB see three frames or seven; zeros around three change nothing.
        """
        if name != "conv1.weight" or tensor.dim() != 5:
            return tensor
        lacking = own.shape[2] - tensor.shape[2]
        if own.shape[1] == 1:
            tensor = tensor.mean(1, keepdim=True)
        return F.pad(tensor, (0, 0, 0, 0, lacking // 2, lacking // 2)) if lacking > 0 else tensor
