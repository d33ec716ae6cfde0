"""From texts to rows of token numbers: a tokenizer made of train texts.

Legend: n texts, T tokens.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError, one_line
from bmnas.tasks.task import Array
from bmnas.tasks.words import UNICODE_RULE, tokenizers_package, word_splitter

PAD, UNKNOWN = 0, 1
_SPECIAL = ("<pad>", "<unk>")

#: A row is as long as the longest train text, or, where that is no short one, as all but one in a
#: hundred need, and at most so long by itself.
_SHORT, _COVERED, _LONGEST = 128, 0.99, 512


def text_length(counts: Sequence[int], wanted: int | None = None) -> int:
    """Return T for train texts of so many tokens each: ``wanted``, else as the data has it."""
    if wanted is not None:
        return wanted
    if not counts:
        return 1
    covering = int(np.quantile(counts, _COVERED, method="higher"))
    return max(1, min(max(counts), _SHORT), min(covering, _LONGEST))


class TextEncoder(ABC):
    """Rows of token numbers, int64 (n, T), of texts; ``ids`` are the numbers of known tokens.

    ``length`` is T; what is longer is cut there, what is shorter filled up with 0.
    """

    ids: Mapping[str, int]
    length: int

    @abstractmethod
    def numbers(self, text: str) -> list[int]:
        """Return the numbers of all tokens of ``text``, unknown ones as 1."""

    @abstractmethod
    def rule(self) -> dict[str, object]:
        """Return the whole rule of ``encode`` as plain JSON data."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return plain JSON data from which ``text_encoder`` makes it again."""

    def encode(self, texts: Sequence[object] | Array) -> Array:
        """Return int64 (n, T) of ``texts``."""
        rows = np.full((len(texts), self.length), PAD, dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = self.numbers(str(text))[: self.length]
            row[: len(numbers)] = numbers
        return rows

    def longer(self, texts: Sequence[object] | Array) -> int:
        """Count the ``texts`` that are cut."""
        return sum(len(self.numbers(str(text))) > self.length for text in texts)


class TextTokenizer(TextEncoder):
    """A word-level tokenizer of Hugging Face tokenizers; ``content`` is its file, tokenizer.json.

    Raises UserError when the package is missing or the content malformed, ValueError when
    padding and unknown are not its first two entries.
    """

    def __init__(self, content: Mapping[str, Any], length: int) -> None:
        package = tokenizers_package()
        try:
            self.tokenizer = package.Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the package raises plain exceptions for malformed content
            raise UserError(f"the tokenizer is malformed: {one_line(error, 200)}") from error
        self.content, self.length = content, length
        self.ids = self.tokenizer.get_vocab()
        if [self.ids.get(name) for name in _SPECIAL] != [PAD, UNKNOWN] or length < 1:
            raise ValueError(f"a tokenizer starts with {_SPECIAL}, and its rows have a length")

    @classmethod
    def from_texts(
        cls, texts: Iterable[object], *, limit: int = 20_000, length: int | None = None
    ) -> TextTokenizer:
        """Take the ``limit`` most frequent tokens of train, those equally frequent by code point.

        ``length`` is T, by default what the texts need, see ``text_length``.
        """
        splitter, counts, lengths = word_splitter(), Counter[str](), []
        for text in texts:
            words = splitter.words(str(text))
            counts.update(words)
            lengths.append(len(words))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(splitter.content([*_SPECIAL, *ranked[:limit]]), text_length(lengths, length))

    def numbers(self, text: str) -> list[int]:
        """Return the numbers of all tokens of ``text``, unknown ones as 1."""
        numbers: list[int] = self.tokenizer.encode(text).ids
        return numbers

    def rule(self) -> dict[str, object]:
        """Return the whole rule of ``encode`` as plain JSON data."""
        return {
            "steps": [
                "tokenise by the tokenizer, a tokenizer.json of Hugging Face tokenizers: Unicode"
                " NFKC, lower case letter by letter, every match of the pattern is a token, what"
                " lies between is left out, a token that the vocabulary lacks is 1",
                "cut at the length; fill up with pad at the end",
            ],
            "unicode": UNICODE_RULE,
            "pad": PAD,
            "unknown": UNKNOWN,
            "length": self.length,
            "tokenizer": self.content,
        }

    def config(self) -> dict[str, Any]:
        """Return plain JSON data from which ``text_encoder`` makes it again."""
        return {"tokenizer": self.content, "length": self.length}


class Vocabulary(TextEncoder):
    """The rule of files of earlier versions: ``words``, padding and unknown in front.

    A combining mark ends a word there, and a clause of Chinese is one. Raises ValueError when a
    word stands twice or the two special entries are not in front.
    """

    PATTERN = re.compile(r"\w+")

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.words = list(words)
        self.length = length
        if tuple(self.words[:2]) != _SPECIAL or length < 1:
            raise ValueError(f"a vocabulary starts with {_SPECIAL}, and its rows have a length")
        self.ids = {word: number for number, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            raise ValueError("a word stands twice in the vocabulary")

    def numbers(self, text: str) -> list[int]:
        """Return the numbers of all words of ``text``, unknown ones as 1."""
        words = self.PATTERN.findall(unicodedata.normalize("NFKC", text).lower())
        return [self.ids.get(word, UNKNOWN) for word in words]

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
            "pattern": self.PATTERN.pattern,
            "unicode": (
                f"Unicode {unicodedata.unidata_version}; lower case is the full mapping, with the"
                " final sigma; the pattern takes runs of letters (general categories L*), of"
                " characters with a Numeric_Type, and of '_': a combining mark ends a word"
            ),
            "pad": PAD,
            "unknown": UNKNOWN,
            "length": self.length,
            "vocabulary": self.words,
        }

    def config(self) -> dict[str, Any]:
        """Return plain JSON data from which ``text_encoder`` makes it again."""
        return {"words": self.words, "length": self.length}


def text_encoder(
    length: int, words: Sequence[str] | None = None, tokenizer: Mapping[str, Any] | None = None
) -> TextEncoder:
    """Return the encoder that a file describes: by its tokenizer, or an earlier one by words."""
    if (words is None) == (tokenizer is None):
        raise ValueError("texts are read by words or by a tokenizer")
    if tokenizer is not None:
        return TextTokenizer(tokenizer, length)
    assert words is not None
    return Vocabulary(words, length)
