"""A vocabulary of words: texts of any language to rows of integers of one length.

Standard library and NumPy only. The rule is short, so that a client in another language can
repeat it: see ``Vocabulary.rule``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from bmnas.tasks.task import Array

PAD = 0
UNKNOWN = 1
SPECIAL = ("<pad>", "<unk>")

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Return the words of a text: NFKC, lower case, then runs of Unicode word characters."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class Vocabulary:
    """Known words and the fixed ``length`` of a row; ``words`` start with padding and unknown.

    Raises ValueError when a word stands twice or the two special entries are not in front.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.words = list(words)
        self.length = length
        if tuple(self.words[:2]) != SPECIAL or length < 1:
            raise ValueError(f"a vocabulary starts with {SPECIAL}, and its rows have a length")
        self.ids = {word: number for number, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            raise ValueError("a word stands twice in the vocabulary")

    @classmethod
    def from_texts(
        cls, texts: Iterable[object], *, limit: int = 20_000, longest: int = 128
    ) -> Vocabulary:
        """Collect the ``limit`` most frequent words.

        Ties go in alphabetical order. A row is as long as the longest text, at most ``longest``.
        """
        counts: Counter[str] = Counter()
        length = 1
        for text in texts:
            words = words_of(str(text))
            counts.update(words)
            length = max(length, len(words))
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        known = [word for word, _ in ranked[:limit]]
        return cls([*SPECIAL, *known], min(length, longest))

    def encode(self, texts: Sequence[object] | Array) -> Array:
        """Return int64 (n, length): word numbers, unknown words 1, filled up with 0."""
        rows = np.full((len(texts), self.length), PAD, dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = [self.ids.get(word, UNKNOWN) for word in words_of(str(text))[: self.length]]
            row[: len(numbers)] = numbers
        return rows

    def rule(self) -> dict[str, object]:
        """Return the whole rule of ``encode`` as plain JSON data."""
        return {
            "steps": [
                "normalise to Unicode NFKC",
                "lower case",
                "take every match of the pattern, in order, as a word",
                "replace a word by its place in the vocabulary, an unknown one by 1",
                "cut at the length; fill up with 0 at the end",
            ],
            "pattern": _WORD.pattern,
            "pad": PAD,
            "unknown": UNKNOWN,
            "length": self.length,
            "vocabulary": self.words,
        }
