"""One backbone trained by itself, and its weights in a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import bmnas_command, one_line_error
from mmimdb_files import write_hdf5
from safetensors.torch import load_file, save_file
from tiny_tasks import CONFIG, changed, tiny_task, write_tiny_task

from bmnas.backbones import build_backbone, load_weights
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.errors import UserError
from bmnas.pipeline import pretrain as stage
from bmnas.pipeline.config import Config
from bmnas.pipeline.pretrain import RECIPES, Pretrained, pretrain, recipe_for
from bmnas.pipeline.search import search
from bmnas.tasks import Rows, Task, load_task
from bmnas.tasks.task import Array
from bmnas.training.metrics import Evaluation

SETTINGS = CONFIG.override("unimodal", epochs=4)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "m0.jsonl").read_text().splitlines()]


def test_the_epoch_with_the_best_validation_score_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, kept = iter([0.2, 0.6, 0.6, 0.5]), []

    def judged(context: object, name: str, backbone: torch.nn.Module, part: str) -> Evaluation:
        kept.append({n: tensor.clone() for n, tensor in backbone.state_dict().items()})
        return Evaluation(0.1 * len(kept), next(scores), torch.zeros(1))

    monkeypatch.setattr(stage, "evaluate_unimodal", judged)
    path, found = pretrain(tiny_task(), "m0", run=tmp_path, config=SETTINGS)
    assert path == tmp_path / "m0.safetensors"
    assert (found.epoch, found.epochs, found.validation) == (2, 4, 0.6)
    assert [line["validation_score"] for line in lines(tmp_path)] == [0.2, 0.6, 0.6, 0.5]
    assert lines(tmp_path)[1]["train_score"] == found.train
    state = load_file(path)
    assert all(torch.equal(state[name], tensor) for name, tensor in kept[1].items())
    assert not (tmp_path / "m0-checkpoint.pt").exists()


def test_a_search_takes_the_weights_as_they_are(tmp_path: Path) -> None:
    task = tiny_task()
    path, found = pretrain(task, "m0", run=tmp_path / "pre", config=SETTINGS)
    begun = changed(task, 0, weights=path)
    run = search(begun, run=tmp_path / "run", config=CONFIG).run
    metrics = json.loads((run / "metrics.json").read_text())["unimodal"]["m0"]
    assert metrics["validation"] == found.validation
    state, kept = load_file(path), load_file(run / "backbones" / "m0.safetensors")
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_given_weights_are_where_the_training_of_all_begins(tmp_path: Path) -> None:
    task = tiny_task()
    path, _ = pretrain(task, "m0", run=tmp_path / "a", config=SETTINGS)
    still = SETTINGS.override("unimodal", epochs=1, max_lr=0.0, min_lr=0.0)
    further, _ = pretrain(changed(task, 0, weights=path), "m0", run=tmp_path / "b", config=still)
    moved, _ = pretrain(changed(task, 0, weights=path), "m0", run=tmp_path / "c", config=SETTINGS)
    before, after, later = (load_file(file) for file in (path, further, moved))
    weights = [name for name, _ in _named(task)]
    assert all(torch.equal(before[name], after[name]) for name in weights)
    assert not any(torch.equal(before[name], later[name]) for name in weights)


def _named(task: Task) -> list[tuple[str, torch.nn.Parameter]]:
    modality = task.modalities[0]
    return list(build_backbone(modality, classes=4, rows=modality.data).named_parameters())


class Shaken(Rows):
    """Rows of an array, to which training adds what was drawn."""

    varies = True

    def __init__(self, data: Array) -> None:
        self._data, self.shape, self.dtype = data, data.shape, data.dtype

    def __getitem__(self, numbers: Array) -> Array:
        return self._data[numbers]

    def varied(self, numbers: Array, draws: Array) -> Array:
        return (self[numbers] + draws[:, :1, None]).astype(self.dtype)

    def digest(self, numbers: Array) -> str:
        return "shaken"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_resumed_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    task = tiny_task()
    task = changed(task, 0, data=Shaken(np.asarray(task.modalities[0].data)))
    whole, found = pretrain(task, "m0", run=tmp_path / "whole", config=SETTINGS)
    write = Checkpoint.save

    def stopped(self: Checkpoint, parts: dict, records: list) -> None:
        if len(records) > after:
            raise KeyboardInterrupt
        write(self, parts, records)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            pretrain(task, "m0", run=tmp_path / "b", config=SETTINGS)
    if after:
        with pytest.raises(UserError, match=r"m0-checkpoint\.pt: there is one already; go on with"):
            pretrain(task, "m0", run=tmp_path / "b", config=SETTINGS)
        other = SETTINGS.override("unimodal", max_lr=0.5)
        with pytest.raises(UserError, match="belongs to other settings"):
            pretrain(task, "m0", run=tmp_path / "b", config=other, existing="resume")
    path, again = pretrain(task, "m0", run=tmp_path / "b", config=SETTINGS, existing="resume")
    assert dataclasses.replace(again, seconds=found.seconds) == found
    first, second = load_file(whole), load_file(path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert lines(tmp_path / "b") == lines(tmp_path / "whole")


def test_what_is_there_is_told_and_only_a_result_is_overwritten(tmp_path: Path) -> None:
    def again(**options: Any) -> Pretrained:
        return pretrain(tiny_task(), "m0", run=tmp_path, config=SETTINGS, **options)[1]

    found = again()
    with pytest.raises(UserError, match=r"m0\.safetensors: there is one already"):
        again()
    assert again(existing="resume") == found
    with pytest.raises(UserError, match="was trained with other settings, weights, seed or data"):
        again(seed=1, existing="resume")
    assert again(seed=1, existing="overwrite").owner != found.owner
    stranger = tmp_path / "stranger.safetensors"
    save_file({"weight": torch.zeros(2)}, stranger)
    with pytest.raises(UserError, match=r"stranger\.safetensors"):
        again(out=stranger, existing="overwrite")
    assert stranger.exists()


def test_networks_of_papers_have_recipes_of_their_own() -> None:
    modality = dataclasses.replace(tiny_task().modalities[0], backbone="hcn")
    assert recipe_for(modality, Config()) == RECIPES["hcn"]
    further = recipe_for(dataclasses.replace(modality, weights=Path("a.pth")), Config())
    assert further.max_lr == pytest.approx(1e-4)
    assert recipe_for(tiny_task().modalities[0], SETTINGS) == SETTINGS.unimodal


def test_the_command_says_what_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ("pretrain", "--task", "task.toml", "--modality", "m0", "--epochs", "2")
    done = bmnas_command(*words)
    assert done.status == 0, done.err
    assert "validation accuracy" in done.out
    assert 'Next: say weights = "runs/tiny-m0/m0.safetensors" below [modality.m0] of' in done.err
    shown = json.loads(bmnas_command(*words, "--resume", "--json").out)
    assert shown.keys() == {"weights", *(f.name for f in dataclasses.fields(Pretrained))}
    assert shown["epochs"] == 2
    assert "there is one already" in one_line_error(bmnas_command(*words))
    wrong = bmnas_command("pretrain", "--task", "task.toml", "--modality", "m9")
    assert "received modality 'm9', expected one of m0, m1" in one_line_error(wrong)
    wrong = bmnas_command(*words, "--overwrite", "--max-lr", "-1")
    assert "--max-lr: received -1.0, expected 0 or more" in one_line_error(wrong)


def test_weights_of_a_folder_task_lie_where_it_looks(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_hdf5(tmp_path / "data")
    where = ("--task", "mmimdb", "--data", tmp_path / "data", "--device", "cpu")
    words = ("pretrain", *where, "--modality", "text", "--epochs", "2", "--run", tmp_path / "run")
    done = bmnas_command(*words)
    assert done.status == 0, done.err
    path = tmp_path / "data" / "weights" / "text.safetensors"
    assert done.err.startswith(f"Next: bmnas pretrain --task mmimdb --data {tmp_path / 'data'}")
    assert done.err.endswith("--modality image\n")
    modality = load_task("mmimdb", tmp_path / "data").modality("text")
    assert modality.weights == path
    backbone = build_backbone(modality, classes=23, rows=modality.data[:2])
    assert load_weights(backbone, path)[0]
    # Its own result is no start, and a start does not lie where the result would.
    assert bmnas_command(*words, "--resume").status == 0
    assert bmnas_command(*words, "--overwrite").status == 0
    path.rename(path.with_suffix(".pth"))
    assert "move it and name it with --weights" in one_line_error(bmnas_command(*words))
    start = path.with_suffix(".pth").rename(tmp_path / "start.safetensors")
    again = bmnas_command(*words, "--weights", start, "--run", tmp_path / "again")
    assert again.status == 0, again.err
