from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import published_weights
import pytest
import torch
from tiny_tasks import CONFIG, changed, tiny_task
from torch import Tensor, nn

import bmnas
import bmnas.pipeline.search
from bmnas.backbones import Backbone
from bmnas.features.samples import FeatureSamples, train_samples
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import Runtime, seed_stage
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import (
    Unimodal,
    _new_backbone,
    _trained,
    remove_stale,
    unimodal_networks,
)
from bmnas.tasks import Task
from bmnas.training.fit import fit
from bmnas.training.heads import weighted_f1

CPU = Runtime(torch.device("cpu"), compile=False)


def context(folder: Path, task: Task, seed: int = 0, threshold: float = 0.5) -> RunContext:
    config = CONFIG.override("train", threshold=threshold)
    return RunContext(Run(folder), task, config, seed, backbones=folder, runtime=CPU)


def networks(
    folder: Path, task: Task, seed: int = 0, threshold: float = 0.5
) -> dict[str, Unimodal]:
    return unimodal_networks(context(folder, task, seed, threshold))


def stamps(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def other_data() -> Task:
    return changed(tiny_task(), 0, data=tiny_task().modalities[0].data + 1)


def test_backbones_are_trained_once_and_kept(tmp_path: Path) -> None:
    first = networks(tmp_path, tiny_task())
    before = stamps(tmp_path)
    second = networks(tmp_path, tiny_task())
    assert stamps(tmp_path) == before
    assert set(before) == {"m0", "m1"}
    assert not list(tmp_path.glob("*-checkpoint.pt"))
    for name, found in first.items():
        assert (found.validation, found.seconds) == (second[name].validation, second[name].seconds)
        assert 0 <= found.validation <= 1
        assert not found.pretrained


def test_another_threshold_changes_the_score_and_not_the_backbone(tmp_path: Path) -> None:
    task = tiny_task(kind="multilabel")

    def scores(threshold: float) -> dict[str, float]:
        found = networks(tmp_path, task, threshold=threshold)
        return {name: one.validation for name, one in found.items()}

    half = scores(0.5)
    before = stamps(tmp_path)
    all_true = scores(0.01)
    assert all_true != half
    labels = task.labels[task.samples("validation")] > 0
    expected = weighted_f1(np.ones_like(labels), labels)
    assert all_true["m0"] == pytest.approx(expected)
    assert scores(0.5) == half
    assert stamps(tmp_path) == before


@pytest.mark.parametrize("change", ["data", "seed", "damage"])
def test_what_would_be_refused_is_stale_and_nothing_else(tmp_path: Path, change: str) -> None:
    networks(tmp_path, tiny_task())
    before = stamps(tmp_path)
    task, seed = (other_data() if change == "data" else tiny_task()), int(change == "seed")
    if change == "damage":
        (tmp_path / "m0.safetensors").write_bytes(b"damaged")
    refusal = r"m0\.safetensors: (was trained for|damaged, not a whole)"
    with pytest.raises(UserError, match=refusal) as line:
        networks(tmp_path, task, seed)
    assert "\n" not in str(line.value)
    (tmp_path / "m1-checkpoint.pt").write_bytes(b"half a training of something else")
    remove_stale(context(tmp_path, task, seed))
    networks(tmp_path, task, seed)
    after = stamps(tmp_path)
    assert after["m0"] != before["m0"]
    assert (after["m1"] == before["m1"]) == (change != "seed")


def test_a_module_with_other_weights_is_another_backbone(tmp_path: Path) -> None:
    def task() -> Task:
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        return changed(tiny_task(), 0, backbone=network, features=("1:channels_last",))

    first = task()
    networks(tmp_path, first)
    networks(tmp_path, first)
    with pytest.raises(UserError, match=r"m0\.safetensors: was trained for"):
        networks(tmp_path, task())


def test_a_frozen_network_computes_each_row_once_for_its_head(tmp_path: Path) -> None:
    read: list[int] = []

    class Given(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            read.append(len(x))
            y: Tensor = super().forward(x)
            return y

    torch.manual_seed(0)
    module = Given(nn.Flatten(), nn.Linear(18, 6), nn.ReLU())
    task = changed(tiny_task(), 0, backbone=module, features=("2",))
    made = context(tmp_path, task)
    train = task.samples("train")
    recipe = dataclasses.replace(made.config.unimodal.recipe, epochs=20)
    once: list[FeatureSamples] = []

    def trained(file: str) -> tuple[Backbone, nn.Module | None]:
        checkpoint = Checkpoint(tmp_path / file, "")
        return _trained(made, task.modalities[0], checkpoint, train, recipe, None, once)

    (backbone, head), _ = trained("first"), read.clear()
    trained("second")
    assert sum(read) < len(train)  # what looks at the shapes of features
    # As if it were computed at every step.
    seed_stage(0, "backbone m0")
    other, own = _new_backbone(task, task.modalities[0])
    assert own is not None
    samples = train_samples(task, task.modalities[0], other, train)
    read.clear()
    fit(own, lambda inputs: other(inputs[0]), samples, made.head, recipe, stage="head")
    assert sum(read) >= 20 * 32
    assert head is backbone.head
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[name], tensor)


@pytest.mark.parametrize("classes", [4, 23])
def test_published_weights_are_kept_and_only_a_missing_head_is_trained(
    tmp_path: Path, classes: int
) -> None:
    state = published_weights.maxout(64, 3, classes)
    torch.save(state, tmp_path / "w.pth")
    rows = tiny_task().modalities[0].data.mean(1)
    of = {"type": "vector", "data": rows, "backbone": "maxout", "weights": tmp_path / "w.pth"}
    task = changed(tiny_task(), 0, **of)
    found = networks(tmp_path / "kept", task)["m0"]
    assert found.pretrained
    kept = found.backbone.state_dict()
    for name in ("weight", "bias"):
        assert torch.equal(kept[f"stages.1.op3.lin.{name}"], state[f"op3.lin.{name}"])
        given = kept[f"head.hid2val.{name}"]
        assert (given.shape == state[f"hid2val.{name}"].shape) == (classes == 4)
    assert torch.equal(kept["stages.1.op2.0.running_mean"], state["op2.0.running_mean"])
    counted = int(kept["head.op4.0.num_batches_tracked"])
    assert (counted == 0) == (classes == 4)


def test_a_name_that_no_network_can_hold_is_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="modality name 'values', which torch keeps for itself"):
        networks(tmp_path, changed(tiny_task(), 0, name="values"))
    assert not stamps(tmp_path)


def test_overwriting_a_run_with_another_seed_starts_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    bmnas.search(tiny_task(), run=run, config=CONFIG)
    again = bmnas.search(tiny_task(), run=run, config=CONFIG, existing="overwrite", seed=1)
    assert again.genotype.provenance["seed"] == 1


def test_overwriting_leaves_shared_backbones_alone(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    networks(shared, tiny_task())
    before = stamps(shared)
    with pytest.raises(UserError, match="choose another folder with --backbones, or delete it"):
        bmnas.search(
            tiny_task(),
            run=tmp_path / "run",
            config=CONFIG,
            backbones=shared,
            existing="overwrite",
            seed=1,
        )
    assert stamps(shared) == before


def test_run_and_backbones_may_be_one_folder(tmp_path: Path) -> None:
    bmnas.search(tiny_task(), run=tmp_path, config=CONFIG, backbones=tmp_path)
    assert {"m0.safetensors", "genotype.json"} <= {path.name for path in tmp_path.iterdir()}
