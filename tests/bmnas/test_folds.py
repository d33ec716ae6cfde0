"""Features of train samples from backbones that have not seen them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tasks import CONFIG, changed, tiny_task

import bmnas
import bmnas.pipeline.unimodal
from bmnas.features.cache import FeatureCache
from bmnas.features.reshape import Pool
from bmnas.machine.files import read_json
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import Unimodal, folds_of, unimodal_networks, useful_epochs
from bmnas.tasks import Task
from bmnas.tasks.task import Part
from bmnas.training.metrics import Evaluation

FOLDS = 2
CONFIG_WITH_FOLDS = CONFIG.override("unimodal", folds=FOLDS, epochs=3)
BOTH: tuple[Part, ...] = ("train", "validation")

_OWN = """from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(18, 9), nn.Linear(9, num_classes))
"""


def context(folder: Path, task: Task) -> RunContext:
    runtime = Runtime(torch.device("cpu"), compile=False)
    return RunContext(Run(folder), task, CONFIG_WITH_FOLDS, 0, backbones=folder, runtime=runtime)


def opened(folder: Path, task: Task) -> tuple[dict[str, Unimodal], FeatureCache]:
    made = context(folder, task)
    networks = unimodal_networks(made)
    backbones = {name: found.backbone for name, found in networks.items()}
    return networks, made.features(backbones, BOTH, 4, folds=folds_of(networks))


@pytest.mark.parametrize("own", [False, True])
def test_every_train_row_is_read_by_a_backbone_that_has_not_seen_it(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task(samples=150)
    if own:
        # Between its trainings a user's own module is read back from a file.
        (tmp_path / "own_fold_net.py").write_text(_OWN, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        task = changed(task, 0, backbone="own_fold_net:Net", features=("1",))
    networks, cache = opened(tmp_path, task)
    for modality in task.modalities:
        found = networks[modality.name]
        assert found.folds is not None
        of_row = found.folds.of_row
        train, validation = task.samples("train"), task.samples("validation")
        assert set(of_row[train]) == set(range(FOLDS))
        assert set(of_row[validation]) == {-1}
        for part, samples in (("train", train), ("validation", validation)):
            features = cache.samples(part).batch(torch.arange(len(samples))).inputs
            first = features[cache.names.index(f"{modality.name}.1")]
            for row, feature in zip(samples, first, strict=True):
                asked = (found.backbone, *found.folds.backbones)[of_row[row] + 1].eval()
                x = torch.from_numpy(asked.encode(modality.data[[row]]))
                # One row at a time and many at once round differently.
                expected = Pool(4)(asked.features(x)[0])[0]
                torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


def test_a_stopped_training_of_folds_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task(samples=150)
    whole, _ = opened(tmp_path / "whole", task)

    class StoppedError(Exception):
        pass

    real, calls = bmnas.pipeline.unimodal.fit, 0

    def stopping(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoppedError
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(bmnas.pipeline.unimodal, "fit", stopping)
    with pytest.raises(StoppedError):
        opened(tmp_path / "stopped", task)
    monkeypatch.undo()
    again, _ = opened(tmp_path / "stopped", task)
    for name, found in whole.items():
        expected, state = found.backbone.state_dict(), again[name].backbone.state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert not list((tmp_path / "stopped").glob("*-start*"))


def test_media_that_validation_shows_again_have_no_folds(tmp_path: Path) -> None:
    task = tiny_task(samples=150)
    shared = np.arange(150) % 40
    task = changed(task, 0, index=shared)
    networks, _ = opened(tmp_path, task)
    assert networks["m0"].folds is None
    assert networks["m1"].folds is not None


def test_a_search_and_a_training_use_them(tmp_path: Path) -> None:
    task = tiny_task(samples=150)
    config = CONFIG_WITH_FOLDS.override("search", rerank=1, rivals=True)
    config = config.override("train", freeze_backbones=True, unimodal_logits=True, epochs=2)
    found = bmnas.search(task, run=tmp_path / "run", config=config)
    result = bmnas.train(found.run / "genotype.json", task)
    assert result.metrics["weighing"]["weights"]
    assert 0 <= result.metrics["test"]["calibration_error"] <= 1
    records = (found.run / "rerank.jsonl").read_text().splitlines()
    # Two Cell networks, thirteen fusions and four modules; the better thirds, 7 and 3.
    assert len(records) == 19 + 7 + 3
    assert sum('"longer": 3' in line for line in records) == 7
    assert sum('"longer": 9' in line for line in records) == 3
    assert any('"gmu"' in line for line in records)


def test_a_training_gets_longer_while_validation_says_so() -> None:
    scores = {2: 0.5, 4: 0.7, 8: 0.7, 16: 0.9}
    losses = {2: 0.6, 4: 0.5, 8: 0.4, 16: 0.3}
    asked: list[int] = []

    def judge(epochs: int) -> Evaluation:
        asked.append(epochs)
        return Evaluation(losses[epochs], scores[epochs], torch.empty(0))

    assert useful_epochs((2, 4, 8, 16), judge) == 16
    losses[8] = 0.5
    assert useful_epochs((2, 4, 8, 16), judge) == 4
    assert asked == [2, 4, 8, 16, 2, 4, 8]
    scores[4] = 1.0
    losses[8] = 0.1  # of right answers, only surer
    assert useful_epochs((2, 4, 8, 16), judge) == 4
    assert asked[7:] == [2, 4]


def test_a_backbone_is_trained_as_long_as_validation_says(tmp_path: Path) -> None:
    task = tiny_task(samples=150)
    config = CONFIG.override("unimodal", epochs=16, early_stopping=True)
    runtime = Runtime(torch.device("cpu"), compile=False)

    def made(folder: Path, config: Config) -> Unimodal:
        run = RunContext(Run(folder), task, config, 0, backbones=folder, runtime=runtime)
        return unimodal_networks(run)["m0"]

    found = made(tmp_path / "stopped", config).backbone.state_dict()
    kept = read_json(tmp_path / "stopped" / "m0-epochs.json")
    chosen = kept["epochs"]
    assert chosen in (2, 4, 8, 16)
    alone = config.override("unimodal", epochs=chosen, early_stopping=False)
    expected = made(tmp_path / "alone", alone).backbone.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list((tmp_path / "stopped").glob("*checkpoint*"))
    # What was tried counts also where a stop came after it.
    (tmp_path / "stopped" / "m0.safetensors").unlink()
    again = made(tmp_path / "stopped", config)
    assert again.seconds > kept["seconds"] > 0
