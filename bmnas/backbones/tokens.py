"""Tokens, integers from a vocabulary of the user's own: convolutions over their embeddings."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from bmnas.backbones.base import InputSpec
from bmnas.backbones.rows import require_rows
from bmnas.backbones.word_conv import WordConvBackbone
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Array, Modality, ModalityType

_LIMIT = 1_000_000


class TokenBackbone(WordConvBackbone):
    """A convolutional network for token numbers (B, T), int64.

    ``tokens`` is one more than the largest number of the train rows; larger and negative ones
    count as unknown. ``padded`` says that 0 is padding. Features are three sequences
    (B, C_raw, T).
    """

    family: ClassVar[str] = "token_conv"
    types: ClassVar[tuple[ModalityType, ...]] = ("tokens",)

    def __init__(
        self, *, classes: int, tokens: int, length: int, padded: bool, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.length = length
        self.config = {
            "classes": classes,
            "tokens": tokens,
            "length": length,
            "padded": padded,
            "dropout": dropout,
        }
        self.build(
            entries=tokens + 1,
            unknown=tokens,
            pad=0 if padded else None,
            classes=classes,
            dropout=dropout,
        )

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` from train tokens ``rows`` (n, T).

        0 is taken for padding where nothing but 0 ever follows it. Raises UserError when the
        rows are none, of the wrong shape, not integers, negative or a million and more.
        """
        require_rows(modality, rows, (1,))
        if rows.dtype.kind not in "iu":
            raise UserError(
                f"modality {modality.name}: received an array of {rows.dtype}, expected integers "
                "for type 'tokens'"
            )
        lowest, highest = int(rows.min()), int(rows.max())
        if lowest < 0 or highest >= _LIMIT:
            raise UserError(
                f"modality {modality.name}: received tokens from {lowest} to {highest}, "
                f"expected 0 to {_LIMIT - 1}"
            )
        padded = not bool(np.any((rows[:, :-1] == 0) & (rows[:, 1:] != 0)))
        return cls(classes=classes, tokens=highest + 1, length=rows.shape[1], padded=padded)

    def encode(self, rows: Array) -> Array:
        """Return tokens ``rows`` (n, T) as int64.

        Raises UserError when the rows are not integers or have another length.
        """
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != self.length or rows.dtype.kind not in "iu":
            raise UserError(
                f"received tokens of shape {rows.shape[1:]} and dtype {rows.dtype}, "
                f"expected integers of shape ({self.length},)"
            )
        return rows.astype(np.int64)

    def input_spec(self) -> InputSpec:
        """Return what the network expects: token numbers of the data's own vocabulary."""
        note = {
            "tokens": self.entries - 1,
            "unknown": "numbers outside [0, tokens) count as unknown",
            "pad": self.pad,
            "length": self.length,
        }
        meaning = f"one row of {self.length} token numbers, filled up at the end"
        return InputSpec((self.length,), "int64", meaning, note)
