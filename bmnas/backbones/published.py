"""Networks of papers, which take over weights that others have published.

A tensor has the name that published files give it, behind its place here: the stem, a stage, the
head. Without weights they are trained like other backbones.
Legend: B batch, T time, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bmnas.backbones.base import Backbone, has_colour, row_dtype
from bmnas.backbones.conv import Pixels, pixel_spec
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Array, Modality

_PLACE = re.compile(r"^(stem|stages\.\d+|head)\.")
_HEAD = "head."
#: What a published file need not have: old ones do not count batches, and none has our constants.
_OPTIONAL = ("num_batches_tracked", "normalise.mean", "normalise.deviation")


class PublishedBackbone(Backbone):
    """A network of a paper.

    ``prefixes`` are beginnings of names in published files, and what stands here in their place;
    names that match ``left_out`` are of no use here. ``published`` says whose files it takes.
    """

    prefixes: ClassVar[Mapping[str, str]] = {}
    left_out: ClassVar[str] = r"(?!)"

    def adopt(self, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], bool]:
        """Return the tensors of a file under the names they have here; is the head among them?

        A head for another number of classes is not: this network's own is returned in its place.
        """
        own, found = self.state_dict(), {}
        here = {_PLACE.sub("", name): name for name in own}
        for published, tensor in self.renamed(state).items():
            name = here.get(published, published)
            found[name] = self.fitted(published, tensor, own[name]) if name in own else tensor
        found |= {n: t for n, t in own.items() if n not in found and n.endswith(_OPTIONAL)}
        head = {name: tensor for name, tensor in own.items() if name.startswith(_HEAD)}
        given = [n for n in head if n in found and not n.endswith(_OPTIONAL)]
        whole = bool(given) and all(found[name].shape == own[name].shape for name in given)
        return (found if whole else found | head), whole

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a published file by their names without a place."""
        found = {}
        for name, tensor in state.items():
            if re.match(self.left_out, name):
                continue
            for prefix, instead in self.prefixes.items():
                if name.startswith(prefix):
                    name = instead + name.removeprefix(prefix)
            found[name] = tensor
        return found

    def fitted(self, name: str, tensor: Tensor, own: Tensor) -> Tensor:
        """Return a published tensor in the form of this network's ``own``; mostly it has it."""
        return tensor


class Normalise(nn.Module):
    """Subtract ``mean`` and divide by ``deviation``, one number for each channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], positions: int) -> None:
        super().__init__()
        shape = (-1, *[1] * positions)
        self.register_buffer("mean", torch.tensor(mean).view(shape))
        self.register_buffer("deviation", torch.tensor(deviation).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x`` (B, C, *positions); one channel becomes several."""
        return ((x - self.mean) / self.deviation).to(self.mean.dtype)


class PublishedPixels(PublishedBackbone):
    """A network of a paper for images or clips, uint8, or floats from 0 to 1.

    ``mean`` and ``deviation`` of the colours are those of its first training, in the same unit.
    """

    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision has it
    deviation: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)

    def __init__(self, *, classes: int, shape: Sequence[int], dtype: str, **config: Any) -> None:
        type_, span = self.types[0], [0.0, 255.0 if dtype == "uint8" else 1.0]
        super().__init__(
            pixel_spec(type_, shape, dtype, span),
            classes=classes,
            shape=list(shape),
            dtype=dtype,
            **config,
        )
        self.colour = has_colour(type_, tuple(shape))
        self.positions = len(shape) - self.colour

    def reader(self, channels: int = 3) -> dict[str, nn.Module]:
        """Return what comes before the network: raw pixels to ``channels``, normalised."""
        mean, deviation = self.mean[:channels], self.deviation[:channels]
        return {
            "prepare": Pixels(colour=self.colour, dtype=self.config["dtype"]),
            "normalise": Normalise(mean, deviation, self.positions),
        }

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from the shape of the train ``rows`` (n, *axes)."""
        dtype = row_dtype(modality.type, rows)
        if dtype != "uint8" and not (rows.min() >= 0 and rows.max() <= 1):
            raise UserError(
                f"received pixels from {rows.min():g} to {rows.max():g} for backbone "
                f"{cls.family!r}, expected uint8, or floats from 0 to 1"
            )
        return cls(classes=classes, shape=list(rows.shape[1:]), dtype=dtype)


def chain(**parts: nn.Module) -> nn.Sequential:
    """Return ``parts`` one after the other, by their names."""
    return nn.Sequential(OrderedDict(parts))


def initialise(network: nn.Module) -> None:
    """Draw the weights of the convolutions as He et al. (2015) do, by their outputs; biases 0."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
