"""Words of a task's texts: what a modality can learn by itself, where labels are of no use to it.

Legend: n samples, K words.
"""

from __future__ import annotations

import functools
import importlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.task import PARTS, Modality, Task

#: Scripts that put no blanks between words: there each letter, with its marks, is a token.
_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tibetan}\p{Javanese}\p{Balinese}"
)
_LETTER = rf"[\p{{L}}\p{{M}}\p{{N}}_&&[^{_UNSPACED}]]"
_JOINER = r"[\x{200C}\x{200D}]"  # inside words of Persian and of the languages of India
_PATTERN = (
    rf"[{_UNSPACED}]\p{{M}}*"
    rf"|{_LETTER}(?:{_LETTER}|{_JOINER}(?={_LETTER}))*"
    r"|(?![\s\p{Z}\p{Cc}\p{Cf}])\X"  # signs and emoji, one by one
)

#: What ``_PATTERN`` takes, in the terms of Unicode.
UNICODE_RULE = (
    "a token is one letter, with its combining marks, of a script without blanks between words"
    " (Han, kana, Bopomofo, Yi, Thai, Lao, Khmer, Myanmar, Tibetan, Javanese, Balinese); or a run"
    " of other letters, marks, numbers and '_' (general categories L*, M*, N*), with joiners"
    " (U+200C, U+200D) inside; or any other grapheme cluster but blanks and controls: a sign, an"
    " emoji"
)

_MOST_WORDS = 1000
_LEAST, _MOST = 3, 0.9  # train samples with a word, and the share of those: others tell little


def tokenizers_package() -> Any:
    """Return the package tokenizers, which is imported where texts are read, and only there."""
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        raise UserError("texts need the package tokenizers: pip install tokenizers") from error


class WordSplitter:
    """How texts of any language are cut into tokens: NFKC, lower case, matches of ``_PATTERN``.

    English gives its words, with the signs between them as tokens of their own.
    """

    def __init__(self) -> None:
        package = tokenizers_package()
        nfkc, lower = package.normalizers.NFKC(), package.normalizers.Lowercase()
        self._normalizer = package.normalizers.Sequence([nfkc, lower])
        # Inverted: what the pattern does not match is removed.
        self._splitter = package.pre_tokenizers.Split(
            package.Regex(_PATTERN), "removed", invert=True
        )

    def words(self, text: str) -> list[str]:
        """Return the tokens of ``text``."""
        normal = self._normalizer.normalize_str(text)
        return [word for word, _ in self._splitter.pre_tokenize_str(normal)]

    def content(self, vocabulary: Sequence[str]) -> dict[str, Any]:
        """Return a tokenizer.json that numbers ``vocabulary``, whose second word is the unknown."""
        package = tokenizers_package()
        numbers = {word: number for number, word in enumerate(vocabulary)}
        model = package.models.WordLevel(numbers, unk_token=vocabulary[1])
        tokenizer = package.Tokenizer(model)
        tokenizer.normalizer, tokenizer.pre_tokenizer = self._normalizer, self._splitter
        content: dict[str, Any] = json.loads(tokenizer.to_str())
        return content


@functools.cache
def word_splitter() -> WordSplitter:
    """Return the one splitter: making one compiles its pattern."""
    return WordSplitter()


def words_of(text: str) -> list[str]:
    """Return the tokens of a text but its punctuation, which names nothing."""
    return [
        word
        for word in word_splitter().words(text)
        if not all(unicodedata.category(character)[0] == "P" for character in word)
    ]


def word_task(task: Task, modality: Modality) -> Task:
    """Return a multilabel task: which words occur in the texts of a sample's row of ``modality``.

    Those are the texts of all samples of the same part with that row: all captions of a picture.
    The classes are the most frequent words of train, but for those that nearly all texts have.
    Raises UserError for a task without texts, or one whose texts share no word.
    """
    told = [m for m in task.modalities if m.type == "text"]
    if not told:
        raise UserError(
            f"task {task.name}: received no text, expected a modality of type text, whose words "
            "the other networks learn"
        )
    every = np.arange(len(task.part))
    texts = [[set(words_of(str(text))) for text in m.data[m.rows_of(every)].tolist()] for m in told]
    words = [set.union(*own) for own in zip(*texts, strict=True)]
    train = task.samples("train")
    counts = Counter(word for sample in train.tolist() for word in words[sample])
    good = [w for w, count in counts.items() if _LEAST <= count <= _MOST * len(train)]
    names = sorted(good, key=lambda word: (-counts[word], word))[:_MOST_WORDS]
    if not names:
        raise UserError(
            f"task {task.name}: received texts of train that share no words, expected words of "
            f"{_LEAST} texts or more, which the other networks learn"
        )
    numbers = {word: number for number, word in enumerate(names)}
    pairs = [(s, numbers[w]) for s, own in enumerate(words) for w in own if w in numbers]
    sample, word = np.array(pairs).T
    row = modality.rows_of(every) * len(PARTS) + task.part
    _, place = np.unique(row, return_inverse=True)
    found = np.zeros((place.max() + 1, len(names)), np.uint8)
    found[place[sample], word] = 1
    return replace(
        task,
        kind="multilabel",
        labels=found[place],
        class_names=tuple(names),
        types=None,
        class_weights=None,
    )
