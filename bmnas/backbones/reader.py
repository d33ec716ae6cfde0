"""What a network that is not ours takes of a modality: plain tensors, as its author expects.

Legend: B batch, T time, H height, W width, D columns, C colours. Images become channels-first
floats in [0, 1], as torchvision makes them; everything else keeps its axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bmnas.backbones.base import InputSpec
from bmnas.backbones.measurements import Floats
from bmnas.backbones.pixels import Pixels
from bmnas.backbones.rows import cast_rows, check_rows, has_colour, require_finite, sample_rows
from bmnas.backbones.vocabulary import Vocabulary
from bmnas.tasks.task import Array, Modality, ModalityType


class Reader:
    """Rows of one modality to the raw input of a graph, and raw input to a network's tensor.

    ``config`` is plain JSON data, by which a file says how its backbone reads; ``prepare`` is
    the part inside the graph: images (B, C, H, W) and clips (B, C, T, H, W) in [0, 1] for uint8,
    waveforms (B, T) in [-1, 1] for int16, sequences (B, T, D), vectors (B, D), word numbers and
    tokens (B, T) as int64.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self.type: ModalityType = config["type"]
        self.dtype = str(config["dtype"])
        self.shape = tuple(config["shape"])
        self.vocabulary: Vocabulary | None = None
        if self.type == "text":
            self.vocabulary = Vocabulary(config["words"], self.shape[0])

    @classmethod
    def from_rows(cls, modality: Modality, rows: Array) -> Reader:
        """Read the train ``rows`` (n, *axes) of ``modality``.

        Raises UserError when the rows are none, of the wrong shape or not finite.
        """
        dtype = check_rows(modality, rows)
        config: dict[str, Any] = {
            "type": modality.type,
            "dtype": dtype,
            "shape": list(rows.shape[1:]),
        }
        if modality.type == "text":
            vocabulary = Vocabulary.from_texts(rows)
            config.update(shape=[vocabulary.length], words=vocabulary.words)
        elif modality.sample_rate is not None:
            config["sample_rate"] = modality.sample_rate
        reader = cls(config)
        require_finite(modality, reader.encode(sample_rows(rows)))
        return reader

    def prepare(self) -> nn.Module:
        """Return the module that turns the raw input into the network's tensor."""
        if self.dtype == "int64":
            return nn.Identity()
        if self.type in ("image", "clip"):
            return Pixels(colour=has_colour(self.type, self.shape), dtype=self.dtype)
        return Floats(scale=1 / 32768 if self.dtype == "int16" else 1.0)

    def encode(self, rows: Array) -> Array:
        """Return the raw input (n, *shape); raises UserError for rows of another shape."""
        if self.vocabulary is not None:
            return self.vocabulary.encode(rows)
        return cast_rows(rows, self.shape, self.dtype)

    def input_spec(self) -> InputSpec:
        """Return what the graph expects: the modality's rows as they are stored."""
        note: dict[str, Any] = {"type": self.type, "scaling": "none: the network scales its input"}
        if "sample_rate" in self.config:
            note["sample_rate"] = self.config["sample_rate"]
        if self.vocabulary is not None:
            note = self.vocabulary.rule()
        meaning = f"one {self.type} of shape {self.shape}, as {self.dtype}"
        return InputSpec(self.shape, self.dtype, meaning, note)
