"""The network of an ``MMnasGenotype``, and what a supernet has in common with it.

Legend: B batch, T tokens of the first feature, N of the second, C_raw channels of a raw feature,
d width, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bmnas.backbones.regions import BOX, areas
from bmnas.features.pairs import ROWS
from bmnas.machine.errors import UserError
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.mmnas.genotype import MMnasGenotype, has_boxes
from bmnas.spaces.mmnas.operations import (
    SHARPER,
    Around,
    AttentiveSum,
    Block,
    Relations,
    norm_of,
)
from bmnas.tasks.kinds import REGIONWISE

if TYPE_CHECKING:
    from bmnas.spaces.mmnas.space import MMnasSpace


@dataclass(frozen=True)
class Read:
    """What the chains begin with: X (B, T, d) and Y (B, N, d), and which tokens count.

    ``counted`` is (B, T), ``mask`` (B, N), ``boxes`` (B, N, 4) where Y has some.
    """

    x: Tensor
    counted: Tensor
    y: Tensor
    mask: Tensor
    boxes: Tensor | None


class EncoderDecoder(Fusion):
    """Tokens of two features through a chain of blocks each; the second sees the first one's end.

    The first feature comes through an LSTM, whose outputs at all tokens are X; the second through a
    linear layer, Y. The logits are linear in LN(AttFlat(X) + AttFlat(Y)), of 2 d channels; where
    each region has its own, in LN(AttFlat(X) + W Y_i + b). Of a feature with boxes
    (``has_boxes``) the last four channels are not among those of Y; where they
    have no area, the token does not count. ``blocks`` returns the block number n of a chain.
    """

    def __init__(
        self,
        shape: MMnasGenotype | MMnasSpace,
        channels_raw: Mapping[str, int],
        *,
        encoder: Iterable[nn.Module],
        decoder: Iterable[nn.Module],
        relates: bool,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__(shape.features, None)
        width = shape.width
        first, second = (channels_raw[name] for name in self.features)
        self.has_boxes = has_boxes(self.features[1])
        self.sequence = nn.LSTM(first, width, batch_first=True)
        if shape.norm != "official":
            with torch.no_grad():
                self.sequence.get_parameter("weight_ih_l0").mul_(SHARPER)
        self.project = nn.Linear(second - (BOX if self.has_boxes else 0), width)
        self.relations = Relations() if relates else None
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.regionwise = classes == REGIONWISE
        sums = 1 if self.regionwise else 2
        self.summaries = nn.ModuleList(AttentiveSum(width, 2 * width, dropout) for _ in range(sums))
        self.norm = norm_of(shape.norm, 2 * width)
        if self.regionwise:
            if not self.has_boxes:
                raise UserError(
                    f"received {self.features[1]}, which has no boxes to choose from, expected a "
                    "feature called regions: give the image the backbone windows"
                )
            self.place = nn.Linear(width, 2 * width)
        self.output = nn.Linear(2 * width, 1 + BOX if self.regionwise else classes)

    def forward(
        self,
        tokens: Sequence[Tensor],
        masks: Sequence[Tensor] = (),
        extras: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return logits (B, K) from tokens (B, T, C_raw) and (B, N, C_raw).

        ``masks``, (B, T) and (B, N), say which of them count; without any, all do. Of pairs, whose
        ``extras`` number the rows, what is the same one after the other is encoded once.
        """
        rows = (extras or {}).get(self.features[0].partition(".")[0] + ROWS)
        if rows is None:
            return self.fuse(self.read(tokens, masks))
        _, place, counts = rows.unique_consecutive(return_inverse=True, return_counts=True)
        begin = counts.cumsum(0) - counts
        first, second = ([x[begin], y] for x, y in (tokens, masks))
        read = self.read(first, second)
        encoded = self.encode(read)[place]
        return self.decode(encoded, dataclasses.replace(read, counted=read.counted[place]))

    @torch.no_grad()
    def sharpen(self, factor: float) -> None:
        """Multiply the scores of regions by ``factor``: the first output of each."""
        if not self.regionwise:
            super().sharpen(factor)
        self.output.weight[0] *= factor
        self.output.bias[0] *= factor

    def timed_parts(self) -> Sequence[nn.Module]:
        """Return what reads tokens, all blocks, and what ends them."""
        first = [self.sequence, self.project, *([] if self.relations is None else [self.relations])]
        last = [*self.summaries, *([self.place] if self.regionwise else []), self.norm, self.output]
        return (*first, *self.encoder, *self.decoder, *last)

    def read(self, tokens: Sequence[Tensor], masks: Sequence[Tensor] = ()) -> Read:
        """Return what the chains begin with, which no operation of theirs changes."""
        first, second = tokens
        counted, mask = masks or [x.new_ones(x.shape[:2], dtype=torch.bool) for x in tokens]
        x, _ = self.sequence(first)
        boxes = None
        if self.has_boxes:
            second, boxes = second[..., :-BOX], second[..., -BOX:]
            mask = mask & areas(boxes)
        return Read(x, counted, self.project(second), mask, boxes)

    def fuse(self, read: Read) -> Tensor:
        """Return logits (B, K)."""
        return self.decode(self.encode(read), read)

    def encode(self, read: Read) -> Tensor:
        """Return the end of the encoder (B, T, d), which depends on the first feature alone."""
        encoded, around = read.x, Around(read.counted)
        for block in self.encoder:
            encoded = block(encoded, around)
        return encoded

    def decode(self, encoded: Tensor, read: Read) -> Tensor:
        """Return logits (B, K) from the end of the encoder and the second feature.

        Where they are ``REGIONWISE``, K is 9 N: a score, four deltas and the box of each region.
        """
        related = None if self.relations is None else self.relations(read.boxes, read.mask)
        y, around = read.y, Around(read.mask, encoded, read.counted, related)
        for block in self.decoder:
            y = block(y, around)
        one, *other = self.summaries
        if self.regionwise:
            each = self.output(self.norm(one(encoded, read.counted)[:, None] + self.place(y)))
            assert read.boxes is not None
            return torch.cat([each, read.boxes], dim=-1).flatten(1)
        summed = one(encoded, read.counted) + other[0](y, read.mask)
        logits: Tensor = self.output(self.norm(summed))
        return logits


class MMnasNetwork(EncoderDecoder):
    """The network of ``found``: a block for each of its operations."""

    def __init__(
        self,
        found: MMnasGenotype,
        channels_raw: Mapping[str, int],
        *,
        classes: int,
        dropout: float,
    ) -> None:
        block = block_of(found, dropout)
        super().__init__(
            found,
            channels_raw,
            encoder=map(block, found.encoder),
            decoder=map(block, found.decoder),
            relates="rsa" in found.decoder,
            classes=classes,
            dropout=dropout,
        )


def block_of(shape: MMnasGenotype | MMnasSpace, dropout: float) -> Callable[[str], Block]:
    """Return what makes a block of these sizes from the name of its operation."""

    def made(operation: str) -> Block:
        return Block(operation, shape.width, shape.head, shape.hidden, shape.norm, dropout)

    return made
