from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tasks import CONFIG, changed, tiny_task
from torch import Tensor

import bmnas
from bmnas.features.samples import label_tensor
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.multimodal import evaluate_fusion
from bmnas.training.heads import MultilabelHead, head_for

CPU = Runtime(torch.device("cpu"), compile=False)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("searched") / "run"
    bmnas.search(tiny_task(), run=run, config=CONFIG)
    return run


@pytest.fixture
def found(searched: Path, tmp_path: Path) -> Path:
    shutil.copytree(searched, tmp_path / "run")
    return tmp_path / "run" / "genotype.json"


def train(genotype: Path, **options: Any) -> Any:
    return bmnas.train(genotype, tiny_task(), **options)


def test_a_training_is_tested_once_and_saved(found: Path) -> None:
    result = train(found)
    metrics = result.metrics
    assert metrics["test"]["samples"] == 32
    assert metrics["unimodal"]["m0"]["test"] <= 1
    assert 0 < metrics["test"]["unimodal_mean"] <= 1
    assert metrics["search"]["strategy"] == "bmnas"
    assert metrics["latency"]["torch"]["batch_64"]["median_ms"] > 0
    assert not (found.parent / "train-checkpoint.pt").exists()
    network = bmnas.load_network(result.network).network
    again = evaluate_fusion(tiny_task(), network, "test", head_for("multiclass"), CPU)
    assert again.score == pytest.approx(result.score)
    assert again.loss == pytest.approx(metrics["test"]["loss"], rel=1e-5)


def test_a_training_says_what_it_took_beside_the_search(found: Path, tmp_path: Path) -> None:
    searched = json.loads((found.parent / "metrics.json").read_text())
    metrics = train(found, run=tmp_path / "other").metrics
    seconds = metrics["seconds"]
    assert seconds["train"] > 0
    assert seconds["train_compile"] == 0
    assert {name: seconds[name] for name in searched["seconds"]} == searched["seconds"]
    # One epoch of 64 samples; the rest of the seconds is making the network ready.
    assert metrics["samples_per_second"]["train"] * seconds["train"] >= 64
    assert metrics["samples_per_second"].items() >= searched["samples_per_second"].items()
    assert metrics["peak_memory"]["search"] == searched["peak_memory"]["search"]
    assert metrics["peak_memory"]["train"]["resident_bytes"] > 1 << 20
    assert "seconds" not in (tmp_path / "other" / "train.jsonl").read_text()


def test_frozen_backbones_stay_as_they_are(found: Path) -> None:
    from bmnas.backbones import load_backbone

    config = CONFIG.override("train", freeze_backbones=True)
    result = train(found, config=config)
    network = bmnas.load_network(result.network).network
    for name in network.modalities:
        before = load_backbone(found.parent / "backbones" / f"{name}.safetensors")[0].state_dict()
        after = network.backbone(name).state_dict()
        assert after
        assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


def test_joint_training_changes_the_backbones(found: Path) -> None:
    from bmnas.backbones import load_backbone

    network = bmnas.load_network(train(found).network).network
    name = network.modalities[0]
    before = load_backbone(found.parent / "backbones" / f"{name}.safetensors")[0].state_dict()
    after = network.backbone(name).state_dict()
    assert any(not torch.equal(tensor, before[key]) for key, tensor in after.items())


def test_same_seed_same_network(found: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(found, run=tmp_path / name, seed=5)
    a, b = (tmp_path / name / "network.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["seed"] == 5
    # What the search cost belongs to every network that comes out of it.
    assert "search" in json.loads((tmp_path / "a" / "metrics.json").read_text())


def test_an_existing_training_is_refused_resumed_or_overwritten(found: Path) -> None:
    train(found)
    with pytest.raises(UserError, match="there is a training already"):
        train(found)
    train(found, existing="resume")
    config = CONFIG.override("train", epochs=2)
    with pytest.raises(UserError, match=r"train\.epochs 1, received 2"):
        train(found, existing="resume", config=config)
    result = train(found, existing="overwrite", config=config)
    assert len((result.run / "train.jsonl").read_text().splitlines()) == 2


def test_another_seed_needs_another_folder(found: Path) -> None:
    with pytest.raises(UserError, match="seed 0, received 1"):
        train(found, seed=1)


def test_a_genotype_of_another_task_is_refused(found: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reads m0.1, task digits has left.1, .*another task"):
        bmnas.train(found, bmnas.load_task("digits"), run=tmp_path / "other", config=CONFIG)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    task = changed(tiny_task(), 1, backbone=network, features=("1:channels_last",))
    # The search's feature m1.1 is there, m1.2 is not.
    with pytest.raises(UserError, match=r"reads m1.2, task tiny has m0.1, …, m1.1: it was found"):
        bmnas.train(found, task, run=tmp_path / "other", config=CONFIG)
    assert not (tmp_path / "other").exists()


def test_a_threshold_chosen_on_validation_takes_the_backbones_of_the_search(tmp_path: Path) -> None:
    task = tiny_task(kind="multilabel")
    search = bmnas.search(task, run=tmp_path / "run", config=CONFIG)
    config = CONFIG.override("train", threshold=0.99)
    result = bmnas.train(search.run / "genotype.json", task, run=tmp_path / "t", config=config)
    # At that threshold no label is predicted, by the backbones as by the network.
    assert result.score == 0
    for scores in result.metrics["unimodal"].values():
        assert scores["test"] == scores["validation"] == 0
    assert all(scores["validation"] > 0 for scores in search.metrics["unimodal"].values())


def test_no_threshold_is_chosen_by_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Labels of test are others than those of validation, so that who asks is seen.
    task = tiny_task(kind="multilabel", samples=93)
    chosen = []
    best = MultilabelHead.best_threshold

    def spied(head: MultilabelHead, logits: Tensor, labels: Tensor) -> float:
        chosen.append(labels)
        return best(head, logits, labels)

    monkeypatch.setattr(MultilabelHead, "best_threshold", spied)
    result = bmnas.train_fusion("concat", task, run=tmp_path / "run", config=CONFIG)
    test, validation = (label_tensor(task, task.samples(p)) for p in ("test", "validation"))
    assert not any(torch.equal(labels, test) for labels in chosen)
    # The mean of the logits has a threshold of its own too: both networks', the mean's, the fused.
    assert sum(torch.equal(labels, validation) for labels in chosen) >= 4
    assert result.metrics["test"]["unimodal_mean"] > 0


def test_a_genotype_without_a_run_needs_a_task(found: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "genotype.json"
    alone.parent.mkdir()
    alone.write_bytes(found.read_bytes())
    with pytest.raises(UserError, match="name the task with --task"):
        bmnas.train(alone)
    result = train(alone, config=CONFIG)
    assert result.score >= 0


def test_spoiled_test_data_is_told_before_the_training(found: Path) -> None:
    task = tiny_task()
    task.modalities[0].data[task.samples("test")[3]] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        bmnas.train(found, task)
    assert not (found.parent / "train.jsonl").exists()
