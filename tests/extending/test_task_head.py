"""A kind of task of one's own, in this file alone: searched, trained, exported, served, drawn.

Grades: K classes in order. A network gives K - 1 logits; the sigmoid of logit k is the probability
that a grade of k or more is above k (a continuation ratio model).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bmnas_export import export_bundle
from bmnas_serve.metadata import model_metadata
from bmnas_serve.session import Session
from tiny_tasks import CONFIG, tiny_task, write_tiny_task
from torch import Tensor

import bmnas
from bmnas.machine.errors import UserError
from bmnas.tasks import check_task, load_task
from bmnas.tasks.kinds import TASK_KINDS, Multiclass
from bmnas.training.heads import TASK_HEADS, TaskHead, register_head


class Grades(Multiclass):
    name = "grades"

    def outputs(self, classes: int) -> int:
        return classes - 1


class GradesHead(TaskHead):
    kind = Grades()
    metric = "one_minus_mean_error"
    decision = "argmax"
    activation = "differences of the sigmoids"

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        number = torch.arange(logits.shape[1], device=labels.device)
        above, reached = labels[:, None] > number, labels[:, None] >= number
        losses = F.binary_cross_entropy_with_logits(logits, above.to(logits), reduction="none")
        return (losses * reached).sum(-1)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        error = (self.decide(logits)[:, 0] - labels).abs().double().mean()
        return 1 - float(error) / logits.shape[1]

    def probabilities(self, logits: Tensor) -> Tensor:
        reached = F.pad(F.logsigmoid(logits).cumsum(-1).exp(), (1, 0), value=1.0)
        return reached * F.pad(1 - logits.sigmoid(), (0, 1), value=1.0)

    def decide(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits).argmax(-1, keepdim=True)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_head(GradesHead)
    yield
    del TASK_KINDS["grades"], TASK_HEADS["grades"]


@pytest.mark.usefixtures("pictures")
def test_a_kind_of_its_own_goes_all_the_way(tmp_path: Path) -> None:
    task = tiny_task(kind="grades")
    found = bmnas.search(task, run=tmp_path / "run", config=CONFIG)
    assert found.metrics["metric"] == "one_minus_mean_error"
    assert 0 <= found.validation <= 1
    assert (tmp_path / "run" / "architecture.svg").is_file()

    trained = bmnas.train(tmp_path / "run" / "genotype.json", task, run=tmp_path / "run")
    assert 0 <= trained.score <= 1
    network = bmnas.load_network(trained.network)
    bundle = export_bundle(network, task, tmp_path / "bundle")
    assert bundle.parity.passed
    assert bundle.parity.agree == bundle.parity.rows

    session = Session.open(tmp_path / "bundle")
    inputs = {
        modality.name: modality.data[task.samples("test")].astype(np.float32)
        for modality in task.modalities
    }
    answer = session.run(inputs)
    assert (answer["logits"].shape[1], answer["probabilities"].shape[1]) == (3, 4)
    np.testing.assert_allclose(answer["probabilities"].sum(1), 1, atol=1e-6)
    error = np.abs(answer["probabilities"].argmax(1) - task.labels[task.samples("test")]).mean()
    assert 1 - error / 3 == pytest.approx(trained.score)
    about = model_metadata(session)["parameters"]
    assert (about["kind"], about["decision"], about["threshold"]) == ("grades", "argmax", None)


def test_a_task_file_may_name_it(tmp_path: Path) -> None:
    task = load_task(write_tiny_task(tmp_path, kind="grades"))
    check_task(task)
    assert (task.classes, task.outputs) == (4, 3)
    # What the kind inherits is checked as for its base.
    with pytest.raises(UserError, match="labels out of range: received 4"):
        check_task(dataclasses.replace(task, labels=task.labels + 1))


def test_a_network_of_a_kind_that_nobody_registered_is_told(tmp_path: Path) -> None:
    task = tiny_task(kind="grades")
    config = CONFIG.override("train", freeze_backbones=True)
    trained = bmnas.train_fusion("concat", task, run=tmp_path / "run", config=config)
    kind, head = TASK_KINDS.pop("grades"), TASK_HEADS.pop("grades")
    with pytest.raises(UserError, match=r"network\.safetensors: received the task kind 'grades'"):
        bmnas.load_network(trained.network)
    TASK_KINDS["grades"], TASK_HEADS["grades"] = kind, head
