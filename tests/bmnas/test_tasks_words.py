"""Networks of one modality that learn the words of texts in place of the task."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_tasks import CONFIG

import bmnas
from bmnas.machine.errors import UserError
from bmnas.report.metrics import RunMetrics
from bmnas.report.tables import run_tables
from bmnas.tasks import Modality, Task
from bmnas.tasks.words import word_task


def pictures_and_texts() -> Task:
    """Every picture has two texts: one names its colour, one its place; answers need both."""
    draw = np.random.default_rng(0)
    colour, place = draw.integers(0, 2, (2, 48))
    images = draw.integers(0, 40, (48, 12, 12), dtype=np.uint8)
    images[colour == 1] += 120
    told = [f"It is {('Dark', 'bright')[c]}." for c in colour]
    told += [f"it is {('near', 'far')[p]}, {n}" for n, p in enumerate(place)]
    return Task(
        name="told",
        kind="multiclass",
        modalities=(
            Modality("text", "text", np.array(told)),
            Modality("image", "image", images, np.tile(np.arange(48), 2)),
        ),
        labels=np.tile(draw.integers(0, 2, 48), 2),
        part=np.tile(np.arange(48) % 3, 2),
        class_names=("no", "yes"),
    )


def test_a_row_has_the_words_of_all_of_its_texts() -> None:
    task = pictures_and_texts()
    own = word_task(task, task.modality("image"))
    assert own.kind == "multilabel"
    # Neither what all texts have nor what one has alone.
    assert set(own.class_names) == {"dark", "bright", "near", "far"}
    assert np.array_equal(own.labels[:48], own.labels[48:])
    assert (own.labels.sum(1) == 2).all()
    of_text = word_task(task, task.modality("text"))
    assert (of_text.labels.sum(1) == 1).all()
    assert np.array_equal(of_text.labels[:48] | of_text.labels[48:], own.labels[:48])


def test_a_row_of_two_parts_has_the_words_of_each_part_by_themselves() -> None:
    task = pictures_and_texts()
    part = task.part.copy()
    part[:48], part[48:] = 0, 1
    own = word_task(dataclasses.replace(task, part=part), task.modality("image"))
    # Only words of train are classes, and only its own texts tell of a sample.
    assert set(own.class_names) == {"dark", "bright"}
    assert (own.labels[:48].sum(1) == 1).all()
    assert not own.labels[48:].any()


def test_tasks_without_words_to_learn_are_refused() -> None:
    task = pictures_and_texts()
    bare = dataclasses.replace(task, modalities=(task.modality("image"),))
    with pytest.raises(UserError, match="received no text, expected a modality of type text"):
        word_task(bare, task.modality("image"))
    text = Modality("text", "text", np.array([f"w{n}" for n in range(96)]))
    with pytest.raises(UserError, match="texts of train that share no words"):
        word_task(dataclasses.replace(task, modalities=(text,)), text)


def test_a_run_says_what_its_backbones_have_learned(tmp_path: Path) -> None:
    task = pictures_and_texts()
    config = CONFIG.override("unimodal", words=True, epochs=20).override(
        "train", unimodal_logits=True
    )
    found = bmnas.search(task, run=tmp_path, config=config, strategy="random")
    trained = bmnas.train(found.run / "genotype.json", task)
    metrics = RunMetrics.load(tmp_path / "metrics.json")
    assert {own.metric for own in metrics.unimodal.values()} == {"weighted_f1"}
    # A text names its word, a picture one of two.
    assert metrics.unimodal["text"].test == pytest.approx(1)
    assert metrics.unimodal["image"].test is not None
    assert metrics.unimodal["image"].test > 0.6
    assert "text alone, weighted f1 of words" in [row[0] for row in run_tables(metrics)[0].rows]
    assert trained.metrics["metric"] == "accuracy"
    # What says nothing of the task is not added up.
    assert "weighing" not in trained.metrics
    assert "unimodal_mean" not in trained.metrics["test"]
    # Backbones of the task are others.
    with pytest.raises(UserError, match="was trained for another task"):
        bmnas.search(task, run=tmp_path / "b", config=CONFIG, backbones=tmp_path / "backbones")
