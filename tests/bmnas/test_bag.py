"""The linear model of words beside a text network: its values, what it adds, and its file."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tasks import CONFIG

from bmnas.backbones import Backbone, load_backbone
from bmnas.backbones.bag import BagOfWords
from bmnas.backbones.words import TextBackbone
from bmnas.pipeline import bag as pipeline_bag
from bmnas.pipeline.config import fitted_config
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import evaluate_unimodal, unimodal_networks
from bmnas.tasks import Modality, Task
from bmnas.training.metrics import Evaluation
from bmnas.training.settings import Weighing

CLASSES, WORDS, SAMPLES = 4, 120, 240


def text_task() -> Task:
    """Texts of 12 words in any order, of which 3 belong to the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SAMPLES)
    own = rng.integers(0, WORDS // CLASSES, (SAMPLES, 3)) * CLASSES + labels[:, None]
    words = np.concatenate([own, rng.integers(0, WORDS, (SAMPLES, 9))], axis=1)
    texts = [" ".join(f"w{word}" for word in rng.permutation(row)) for row in words]
    names = tuple(f"class {k}" for k in range(CLASSES))
    part = np.arange(SAMPLES) % 3
    return Task(
        "words", "multiclass", (Modality("m0", "text", np.array(texts)),), labels, part, names
    )


def trained(folder: Path, *, linear: bool) -> tuple[Backbone, Evaluation]:
    config = CONFIG.override("unimodal", epochs=4, linear=linear)
    context = RunContext(Run(folder), text_task(), config, 0)
    backbone = unimodal_networks(context)["m0"].backbone
    return backbone, evaluate_unimodal(context, "m0", backbone, "test")


def test_a_row_is_its_words_by_how_rare_they_are() -> None:
    rows = [[2, 3, 3], [2, 4], [2, 3], []]
    ids = torch.tensor([row + [0] * (3 - len(row)) for row in rows])
    bag = BagOfWords(6, 2)
    bag.count(ids, ids != 0)
    having = Counter(word for row in rows for word in set(row))
    idf = {word: math.log((1 + len(rows)) / (1 + count)) + 1 for word, count in having.items()}
    logits = bag(ids, (ids != 0).float())
    for row, found in zip(rows, logits, strict=True):
        length = math.sqrt(sum(idf[word] ** 2 for word in row)) or 1.0
        terms = [idf[word] / length * bag.weights.weight[word] for word in row]
        torch.testing.assert_close(found, sum(terms, torch.zeros(2)))
    assert bag.idf[5] == 0  # no row has it


def test_both_together_do_better_than_the_network_alone(tmp_path: Path) -> None:
    _, alone = trained(tmp_path / "alone", linear=False)
    backbone, both = trained(tmp_path / "both", linear=True)
    assert both.loss < alone.loss - 0.1
    assert both.score > alone.score + 0.05
    again, _ = load_backbone(tmp_path / "both" / "backbones" / "m0.safetensors")
    x = torch.from_numpy(backbone.encode(np.array(["w1 w2", "w5 unknown", ""])))
    torch.testing.assert_close(again(x), backbone.eval()(x), rtol=0, atol=0)
    again.truncate(3)
    assert not any("bag" in name for name in again.state_dict())


def test_too_many_weights_are_left_to_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_bag, "_MOST_WEIGHTS", 10)
    backbone, _ = trained(tmp_path, linear=True)
    assert isinstance(backbone, TextBackbone)
    assert backbone.bag is None


def test_a_linear_model_without_a_vote_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Weighing({"network": 1.0})
    monkeypatch.setattr(pipeline_bag, "fit_weighing", lambda *_: alone)
    backbone, _ = trained(tmp_path, linear=True)
    assert isinstance(backbone, TextBackbone)
    assert backbone.bag is None


def test_the_default_has_it_and_the_paper_has_not() -> None:
    config = fitted_config(text_task())
    assert config.unimodal.linear
    assert not config.as_in_the_paper().unimodal.linear


def test_what_learns_words_has_none(tmp_path: Path) -> None:
    task = dataclasses.replace(text_task(), name="texts")
    context = RunContext(
        Run(tmp_path), task, fitted_config(task).override("unimodal", words=True), 0
    )
    assert not context.alone(task.modalities[0]).config.unimodal.linear
