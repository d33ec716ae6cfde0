"""What stands beside a test score: further metrics, class weights, predictions, confusion."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    multilabel_confusion_matrix,
    roc_auc_score,
)
from tiny_runs import METRICS, svg_texts, write_run
from tiny_tasks import CONFIG, tiny_task, write_tiny_task

import bmnas
from bmnas.machine.errors import UserError
from bmnas.report.metrics import RunMetrics
from bmnas.report.predictions import confusion_parts, confusion_tables
from bmnas.report.record import load_run
from bmnas.report.style import figure_of
from bmnas.tasks import check_task, load_task
from bmnas.tasks.kinds import UNSEEN_LABEL
from bmnas.training.heads import head_for, head_of

NAMES = ("cat", "dog", "owl")


def draw(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    return torch.randn(count, 3, generator=generator) + F.one_hot(labels, 3), labels


def test_metrics_of_classes_are_those_of_scikit_learn() -> None:
    head, (logits, labels) = head_for("multiclass", names=NAMES), draw()
    chosen, likely = logits.argmax(1), logits.softmax(1)
    details = head.details(logits, labels)
    assert details["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, chosen))
    assert details["auroc"] == pytest.approx(
        roc_auc_score(labels, likely, multi_class="ovr", average="macro")
    )
    assert head.macro_f1(logits, labels) == pytest.approx(f1_score(labels, chosen, average="macro"))
    found = head.confusion(logits, labels)
    assert found is not None
    assert (found.rows, np.array(found.counts).tolist()) == (
        NAMES,
        confusion_matrix(labels, chosen).tolist(),
    )


def test_classes_that_train_or_test_lacks_have_no_recall() -> None:
    head = head_for("multiclass", names=NAMES)
    logits = 5.0 * F.one_hot(torch.tensor([0, 1, 1, 0]), 3)
    labels = torch.tensor([0, 1, 0, UNSEEN_LABEL])
    details = head.details(logits, labels)
    assert details["balanced_accuracy"] == 0.75
    # Of four choices of two classes one is wrong, and one is of a class that nobody knows.
    assert head.macro_f1(logits, labels) == pytest.approx((0.5 + 2 / 3) / 2)
    assert head.columns(logits, labels)["label"] == ["cat", "dog", "cat", ""]
    found = head.confusion(logits, labels)
    assert found is not None
    assert found.counts == ((1, 1, 0), (0, 1, 0), (0, 0, 0))
    alone = head.details(logits[:1], labels[:1])
    assert alone == {"balanced_accuracy": 1.0}


def test_metrics_of_labels_are_those_of_scikit_learn() -> None:
    head, (logits, _) = head_for("multilabel", 0.4, names=NAMES), draw()
    labels = (torch.randn(60, 3, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    given, likely = logits.sigmoid() > 0.4, logits.sigmoid()
    details = head.details(logits, labels)
    each = [balanced_accuracy_score(labels[:, k], given[:, k]) for k in range(3)]
    assert details["balanced_accuracy"] == pytest.approx(np.mean(each))
    assert details["auroc"] == pytest.approx(roc_auc_score(labels, likely, average="macro"))
    found = head.confusion(logits, labels)
    assert found is not None
    tables = multilabel_confusion_matrix(labels, given)
    assert np.array(found.counts).tolist() == [[t[1, 1], t[1, 0], t[0, 1]] for t in tables]
    tags = head.columns(logits, torch.tensor([[1.0, 0, 1]]).expand(60, 3))["label"]
    assert tags[0] == "cat|owl"


def test_balanced_classes_count_alike() -> None:
    task = dataclasses.replace(tiny_task(), class_weights="balanced")
    train = task.labels[task.samples("train")]
    weights = task.loss_weights
    assert weights is not None
    shares = np.bincount(train) * np.array(weights)
    assert shares == pytest.approx(np.full(4, len(train) / 4))
    labels = torch.from_numpy(train)
    logits = torch.randn(len(train), 4, generator=torch.Generator().manual_seed(0))
    wanted = F.cross_entropy(logits, labels, torch.tensor(weights))
    assert head_of(task).loss(logits, labels).item() == pytest.approx(wanted.item(), rel=1e-5)
    table = dataclasses.replace(task, class_weights={"class 1": 3.0})
    found = table.loss_weights
    assert found is not None
    assert found[1] == pytest.approx(3 * found[0])
    assert np.mean(np.array(found)[train]) == pytest.approx(1)


def test_balanced_labels_weigh_having_and_lacking_alike() -> None:
    task = dataclasses.replace(tiny_task(kind="multilabel"), class_weights="balanced")
    having = task.labels[task.samples("train")].mean(0)
    assert task.loss_weights == pytest.approx(tuple((1 - having) / having))
    labels = task.labels.copy()
    labels[task.samples("train"), 0] = 1
    everywhere = dataclasses.replace(task, labels=labels).loss_weights
    # A label that all train samples have is still learned.
    assert everywhere is not None
    assert everywhere[0] > 0
    labels = torch.from_numpy(task.labels[:8]).float()
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    wanted = F.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=torch.tensor(task.loss_weights)
    )
    assert head_of(task).loss(logits, labels).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_class_weights_that_cannot_be_are_told(tmp_path: Path) -> None:
    path = write_tiny_task(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("[modality.m0]", "class_weights = {0 = 2, 9 = 1}\n[modality.m0]"))
    with pytest.raises(UserError, match="class_weights: received '9', expected classes: 0, 1, 2"):
        check_task(load_task(tmp_path))
    path.write_text(text.replace("[modality.m0]", "class_weights = {0 = 0}\n[modality.m0]"))
    with pytest.raises(UserError, match=r"received 0.* for '0', expected a number above 0"):
        check_task(load_task(tmp_path))
    path.write_text(text.replace("[modality.m0]", "class_weights = 'balanced'\n[modality.m0]"))
    task = load_task(tmp_path)
    check_task(task)
    answers = dataclasses.replace(task, kind="answers", labels=task.labels[:, None])
    with pytest.raises(UserError, match="class_weights: received kind answers"):
        check_task(answers)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_a_training_leaves_predictions_and_confusion(tmp_path: Path, kind: str) -> None:
    task = tiny_task(kind="multilabel" if kind == "multilabel" else "multiclass")
    if kind == "regression":
        labels = task.labels[:, None] + 0.5
        task = dataclasses.replace(task, kind=kind, labels=labels, class_names=("amount",))
    else:
        task = dataclasses.replace(task, class_weights="balanced")
    config = CONFIG.override("train", freeze_backbones=True)
    trained = bmnas.train_fusion("concat", task, run=tmp_path / "run", config=config)
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    samples = task.samples("test")
    assert [int(row["sample"]) for row in rows] == samples.tolist()
    test = trained.metrics["test"]
    if kind == "regression":
        assert [float(row["label"]) for row in rows] == task.labels[samples][:, 0].tolist()
        apart = [abs(float(row["label"]) - float(row["prediction"])) for row in rows]
        assert np.mean(apart) == pytest.approx(test["details"]["mae"])
        assert not (tmp_path / "run" / "confusion.svg").exists()
        assert (tmp_path / "run" / "predictions.svg").is_file()
        return
    assert {"balanced_accuracy", "auroc"} == set(test["details"])
    assert test["macro_f1"] >= 0
    if kind == "multiclass":
        right = np.mean([row["label"] == row["prediction"] for row in rows])
        assert right == pytest.approx(test["score"])
        own = sum(float(rows[0][f"probability class {k}"]) for k in range(4))
        assert own == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "run" / "confusion.svg").is_file()
    assert not (tmp_path / "run" / "predictions.svg").exists()
    (table,) = confusion_tables(RunMetrics.load(tmp_path / "run" / "metrics.json"))
    assert len(table.rows) == task.classes


def test_the_picture_has_names_and_counts(tmp_path: Path) -> None:
    confusion = {"rows": NAMES, "columns": NAMES, "counts": [[11, 1, 2], [3, 12, 4], [5, 6, 13]]}
    test = {**METRICS["test"], "confusion": confusion}
    run = load_run(write_run(tmp_path / "run", metrics={**METRICS, "test": test}))
    texts = svg_texts(figure_of(*confusion_parts(run)))
    assert {"cat", "dog", "owl", "11", "12", "13"} <= set(texts)
    many = {"rows": ["a"], "columns": [str(k) for k in range(30)], "counts": [list(range(30))]}
    metrics = {**METRICS, "test": {**METRICS["test"], "confusion": many}}
    wide = load_run(write_run(tmp_path / "wide", metrics=metrics))
    assert confusion_tables(wide.metrics) == []
    assert len(confusion_parts(wide)) == 1
