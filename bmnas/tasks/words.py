"""Words of a task's texts: what a modality can learn by itself, where labels are of no use to it.

Legend: n samples, K words.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import replace

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.task import PARTS, Modality, Task

WORD = re.compile(r"\w+")

_MOST_WORDS = 1000
_LEAST, _MOST = 3, 0.9  # train samples with a word, and the share of those: others tell little


def words_of(text: str) -> list[str]:
    """Return the words of a text: NFKC, lower case, then runs of Unicode word characters."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


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
        task, kind="multilabel", labels=found[place], class_names=tuple(names), types=None
    )
