"""Co-occurrence HCN for skeletons (Li et al., 2018, arXiv 1804.06055), as MFAS and BM-NAS have it.

Legend: B batch, M persons (2), T time, J joints, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.backbones.base import InputSpec
from bmnas.backbones.published import PublishedBackbone, chain, initialise
from bmnas.machine.errors import UserError
from bmnas.tasks.task import ModalityType

_PERSONS, _AXES = 2, 3
_HALVED = 16  # positions that four maxima over 2 x 2 turn into one


class _Joints(nn.Module):
    """Places and motions of the joints, each through four convolutions, for every person alone.

    The first two look at one joint; for the last two the joints are channels, so that they see all
    joints together: the paper's co-occurrence.
    """

    def __init__(self, joints: int, time: int, width: int, dropout: float) -> None:
        super().__init__()
        self.joints = joints
        for branch in ("", "m"):
            parts = {
                "conv1": nn.Sequential(nn.Conv2d(_AXES, width, 1), nn.ReLU()),
                "conv2": nn.Conv2d(width, time, (3, 1), padding=(1, 0)),
                "conv3": nn.Sequential(
                    nn.Conv2d(joints, width // 2, 3, padding=1), nn.MaxPool2d(2)
                ),
                "conv4": nn.Sequential(
                    nn.Conv2d(width // 2, width, 3, padding=1),
                    nn.Dropout2d(dropout),
                    nn.MaxPool2d(2),
                ),
            }
            for name, part in parts.items():
                self.add_module(name + branch, part)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B M, 2 width, T / 4, T / 4) of ``x`` (B, T, M J 3)."""
        x = x.unflatten(2, (_PERSONS, self.joints, _AXES))
        places = x.permute(0, 2, 4, 1, 3).flatten(0, 1)  # (B M, 3, T, J)
        steps = places[:, :, 1:] - places[:, :, :-1]
        motions = F.interpolate(steps, size=places.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([self._branch(places, ""), self._branch(motions, "m")], dim=1)

    def _branch(self, x: Tensor, branch: str) -> Tensor:
        x = self.get_submodule(f"conv1{branch}")(x)
        x = self.get_submodule(f"conv2{branch}")(x)
        x = self.get_submodule(f"conv3{branch}")(x.transpose(1, 3))  # (B M, J, T, channels)
        out: Tensor = self.get_submodule(f"conv4{branch}")(x)
        return out


class HCNBackbone(PublishedBackbone):
    """HCN for sequences (B, T, 150): two persons, 25 joints, x y z, flattened, in that order.

    ``width`` is that of the first convolution. Features are two maps, the maximum over the persons,
    (B, 2 width, T / 8, T / 8) and (B, 4 width, T / 16, T / 16), the latter flattened, and a dense
    layer (B, 8 width). Raises UserError for another number of columns, or for T below 16.
    """

    family: ClassVar[str] = "hcn"
    types: ClassVar[tuple[ModalityType, ...]] = ("sequence",)
    published: ClassVar[str] = "the HCN of MFAS, BM-NAS or HCN-pytorch"
    joints = 25

    def __init__(
        self, *, classes: int, shape: Sequence[int], width: int = 64, dropout: float = 0.5
    ) -> None:
        time, columns = shape
        expected = _PERSONS * self.joints * _AXES
        if columns != expected or time < _HALVED:
            raise UserError(
                f"received rows of ({time}, {columns}) for backbone {self.family!r}, expected "
                f"{_HALVED} steps or more of {expected} numbers: {_PERSONS} persons, "
                f"{self.joints} joints, x y z"
            )
        note = {"layout": "T, then person, joint, axis", "scaling": "none"}
        meaning = (
            f"{time} steps in order of time: the joints of {_PERSONS} persons in metres, zeros for "
            "a missing one; joint 2 of the first is the origin"
        )
        spec = InputSpec((time, columns), "float32", meaning, note)
        super().__init__(spec, classes=classes, shape=list(shape), width=width, dropout=dropout)

        def convolution(channels_in: int, channels: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(channels_in, channels, 3, padding=1),
                nn.ReLU(),
                nn.Dropout2d(dropout),
                nn.MaxPool2d(2),
            )

        flat = 4 * width * (time // _HALVED) ** 2
        dense = nn.Sequential(nn.Linear(flat, 8 * width), nn.ReLU(), nn.Dropout(dropout))
        stages = [
            chain(conv5=convolution(2 * width, 2 * width)),
            chain(conv6=convolution(2 * width, 4 * width)),
            nn.Flatten(),
            chain(fc7=dense),
        ]
        stem = _Joints(self.joints, time, width, dropout)
        widths = (2 * width, 4 * width, flat, 8 * width)
        self.set_stages(stem, stages, widths, chain(fc8=nn.Linear(8 * width, classes)))
        initialise(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features; the persons meet in the maximum, after both maps."""
        x = self.stem(x)
        outputs: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            # Map 2 is that of each person's map 1, not of their maximum.
            x = stage(outputs[-1] if number >= 2 else x)
            outputs.append(x.unflatten(0, (-1, _PERSONS)).amax(1) if number < 2 else x)
        return outputs
