"""Texts: an own vocabulary of the train texts, then convolutions over the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from bmnas.backbones.base import InputSpec
from bmnas.backbones.rows import require_rows
from bmnas.backbones.vocabulary import PAD, UNKNOWN, Vocabulary, texts_without_known_word
from bmnas.backbones.word_conv import WordConvBackbone
from bmnas.machine.errors import UserError
from bmnas.tasks.task import Array, Modality, ModalityType


class TextBackbone(WordConvBackbone):
    """A convolutional network for texts, given as word numbers (B, T), int64.

    ``words`` is the vocabulary, ``length`` is T. Features are three sequences (B, C_raw, T).
    """

    family: ClassVar[str] = "text_conv"
    types: ClassVar[tuple[ModalityType, ...]] = ("text",)

    def __init__(
        self, *, classes: int, words: Sequence[str], length: int, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(words, length)
        self.config = {
            "classes": classes,
            "words": list(words),
            "length": length,
            "dropout": dropout,
        }
        self.build(entries=len(words), unknown=UNKNOWN, pad=PAD, classes=classes, dropout=dropout)

    @classmethod
    def from_rows(cls, modality: Modality, *, classes: int, rows: Array) -> Self:
        """Build for K ``classes`` and the vocabulary of the train texts ``rows`` (n,).

        Raises UserError when there are no texts, or no word in any of them.
        """
        vocabulary = Vocabulary.from_texts(texts_of(modality, rows))
        if len(vocabulary.words) <= UNKNOWN + 1:
            raise UserError(
                f"modality {modality.name}: no known word: received {len(rows)} train texts "
                "without a letter or digit, expected words"
            )
        return cls(classes=classes, words=vocabulary.words, length=vocabulary.length)

    def encode(self, rows: Array) -> Array:
        """Return word numbers int64 (n, T) for texts ``rows`` (n,)."""
        return self.vocabulary.encode([str(text) for text in rows])

    def unreadable(self, rows: Array) -> int:
        """Count the texts in ``rows`` (n,) that have no known word at all."""
        return texts_without_known_word(self.vocabulary, [str(text) for text in rows])

    def input_spec(self) -> InputSpec:
        """Return what the network expects: word numbers by the rule in ``preprocessing``."""
        meaning = f"one text as the numbers of its first {self.vocabulary.length} words"
        return InputSpec((self.vocabulary.length,), "int64", meaning, self.vocabulary.rule())


def texts_of(modality: Modality, rows: Array) -> list[str]:
    """Return the texts of ``rows`` (n,); raises UserError when they are none or not strings."""
    require_rows(modality, rows, (0,))
    if rows.dtype.kind not in "UT":
        raise UserError(
            f"modality {modality.name}: received an array of {rows.dtype}, expected strings for "
            "type 'text'"
        )
    return [str(text) for text in rows]
