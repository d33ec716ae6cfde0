"""Linear models of raw inputs: what they read of each type, and that they are fitted to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
from tiny_tasks import CONFIG, changed, tiny_task

from bmnas.lab.linear import fit_linear
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.report.metrics import RunMetrics
from bmnas.tasks import Modality, Task

SAMPLES = 240


def scores(task: Task, folder: Path) -> RunMetrics:
    folder.mkdir(exist_ok=True)
    run = Run(folder)
    fit_linear(RunContext(run, task, CONFIG.override("train"), 0))
    return run.read_metrics()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_what_takes_both_modalities_takes_the_linear_model_of_both(
    tmp_path: Path, kind: str
) -> None:
    found = scores(tiny_task(kind=kind, samples=SAMPLES), tmp_path)
    assert found.test is not None
    assert found.test.score > 0.9
    assert all((own.test or 1) < 0.9 for own in found.unimodal.values())
    assert found.processor_seconds["train"] > 0
    assert scores(tiny_task(kind=kind, samples=SAMPLES), tmp_path).test == found.test


@pytest.mark.parametrize(
    "kind", ["image", "waveform", "sequence", "vector", "text", "clip", "tokens"]
)
def test_every_type_has_numbers(tmp_path: Path, kind: str) -> None:
    part = tiny_networks.tiny_modality("m0", kind, SAMPLES, np.random.default_rng(0))
    task = tiny_task(samples=SAMPLES)
    task = dataclasses.replace(task, modalities=(part, task.modalities[1]))
    found = scores(task, tmp_path)
    assert found.unimodal["m0"].test is not None
    assert (found.unimodal["m1"].test or 0) > 0.4


def test_words_and_shared_long_rows_say_the_label(tmp_path: Path) -> None:
    task, rng = tiny_task(samples=SAMPLES), np.random.default_rng(0)
    words = np.array(["no cat here", "one cat", "a dog", "dog and bird"])
    pixels = rng.integers(0, 99, (40, 20, 20)).astype(np.uint8)
    rows = 4 * rng.integers(0, 10, SAMPLES) + task.labels
    for label in range(4):
        pixels[label::4, label] += 120
    image = Modality("m1", "image", pixels, index=rows)
    task = changed(task, 0, type="text", data=words[task.labels])
    found = scores(dataclasses.replace(task, modalities=(task.modalities[0], image)), tmp_path)
    assert [own.test for own in found.unimodal.values()] == [1.0, 1.0]
    assert found.test is not None
    assert found.test.score == 1.0
