"""Classes that train does not have, and classes of one sample, from search to test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_tasks import CONFIG, tiny_task

import bmnas
from bmnas.machine.progress import Progress
from bmnas.tasks import Task
from bmnas.tasks.kinds import UNSEEN_LABEL

RARE = 20


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def answers() -> Task:
    """A task of 24 classes, 20 of one train sample, and 5 validation and 7 test samples of none."""
    task = tiny_task(samples=192)
    labels = task.labels.astype(np.int64)
    train, validation, test = (task.samples(part) for part in ("train", "validation", "test"))
    labels[train[-RARE:]] = 4 + np.arange(RARE)
    labels[validation[:5]] = labels[test[:7]] = UNSEEN_LABEL
    names = tuple(map(str, range(4 + RARE)))
    return dataclasses.replace(task, labels=labels, class_names=names)


@pytest.mark.parametrize("strategy", ["bmnas", "evolution", "mfas"])
def test_a_task_with_unseen_and_rare_classes_is_searched_trained_and_tested(
    tmp_path: Path, strategy: str
) -> None:
    task, notes = answers(), Notes()
    config = CONFIG.override("train", unimodal_logits=True).override("search", rerank=1)
    config = config.override("unimodal", folds=2)
    found = bmnas.search(task, run=tmp_path, config=config, strategy=strategy, progress=notes)
    assert [text for text in notes.notes if "no train sample has" in text] == [
        "5 of 64 validation samples have a label that no train sample has: whatever is answered to "
        "them counts as wrong, and nothing is trained on them"
    ]
    trained = bmnas.train(found.run / "genotype.json", task, progress=notes)
    assert notes.notes[-1].startswith("5 of 64 validation samples and 7 of 64 test samples have")
    scores = [trained.score, *(own["test"] for own in trained.metrics["unimodal"].values())]
    assert all(0 < score <= (64 - 7) / 64 for score in scores)
    assert np.isfinite(trained.metrics["test"]["loss"])
