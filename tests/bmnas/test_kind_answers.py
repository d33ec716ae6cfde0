"""Tasks whose labels are what several people answered: VQA accuracy, all the way to a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from bmnas_export import export_bundle
from bmnas_serve.session import Session
from hypothesis import given
from hypothesis import strategies as st
from tiny_tasks import CONFIG, tiny_task

import bmnas
from bmnas.machine.errors import UserError
from bmnas.report.metrics import RunMetrics
from bmnas.report.tables import run_tables
from bmnas.tasks import Task, check_task, load_task
from bmnas.tasks.kinds import task_kind
from bmnas.training.heads import head_for

HEAD = head_for("answers")


def official(given_: list[int], chosen: int) -> float:
    """The accuracy of VQA: min(others who said it / 3, 1), each person left out once."""
    others = [[*given_[:i], *given_[i + 1 :]] for i in range(len(given_))]
    return float(np.mean([min(own.count(chosen) / 3, 1) for own in others]))


@given(st.lists(st.integers(-1, 3), min_size=10, max_size=10), st.integers(0, 3))
def test_ten_answers_are_scored_as_in_vqa(given_: list[int], chosen: int) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([chosen]), 4).float()
    score = HEAD.score(logits, torch.tensor([given_]))
    assert score == pytest.approx(official(given_, chosen))


def test_the_loss_is_binary_cross_entropy_with_worths_summed() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    labels = torch.tensor([[0, 0, 1, -1, -1, -1, -1, 2, 2, 2]])
    worth = torch.tensor([[0.6, 0.3, 0.9]])
    p = logits.sigmoid()
    wanted = -(worth * p.log() + (1 - worth) * (1 - p).log()).sum()
    assert HEAD.loss(logits, labels).item() == pytest.approx(wanted.item(), rel=1e-6)
    # One person's answer is right, and nothing is where nobody's answer is a class.
    assert HEAD.score(logits, torch.tensor([[0]])) == 1
    assert HEAD.score(logits, torch.tensor([[-1]])) == 0


def test_a_table_of_predictions_has_the_answers_of_people_and_the_chosen_one() -> None:
    head = head_for("answers", names=("blue", "no", "yes"))
    logits = torch.tensor([[0.0, -1.0, 2.0], [3.0, 0.0, 0.0]])
    found = head.columns(logits, torch.tensor([[2, 2, -1], [-1, -1, -1]]))
    assert found["label"] == ["yes|yes", ""]
    assert found["prediction"] == ["yes", "blue"]
    sure = torch.tensor([2.0, 3.0]).sigmoid().tolist()
    assert found["probability"] == pytest.approx(sure)


def test_answers_become_class_numbers() -> None:
    kind, seen = task_kind("answers"), np.array([True, True, False])
    given_ = np.array([["yes", "no", ""], ["yes", "yes", "blue"], ["green", "no", "yes"]])
    labels, names = kind.encode(given_, seen, None, "labels")
    assert names == ("blue", "no", "yes")
    assert labels.tolist() == [[2, 1, -1], [2, 2, 0], [-1, 1, 2]]
    labels, names = kind.encode(given_[:, 0], seen, ["no", "yes"], "labels")
    assert (names, labels.tolist()) == (("no", "yes"), [[1], [1], [-1]])
    # Strings without a common length, as long columns are kept.
    again = kind.encode(given_.astype(np.dtypes.StringDType()), seen, None, "labels")
    assert np.array_equal(again[0], kind.encode(given_, seen, None, "labels")[0])
    labels, names = kind.encode(np.array([0, 2, 5]), seen, None, "labels")
    assert (names, labels.tolist()) == (("0", "1", "2"), [[0], [2], [5]])
    assert kind.belonging(np.array([[2, 2, -1], [0, 1, 1]]), 3).tolist() == [
        [False, False, True],
        [True, True, False],
    ]
    assert kind.unseen(np.array([[-1, -1], [-1, 0]])).tolist() == [True, False]


def answered() -> Task:
    """A task of four classes that three people answered, one of them at random."""
    task = tiny_task(samples=192)
    rng = np.random.default_rng(0)
    labels = np.stack([task.labels, task.labels, rng.integers(-1, 4, len(task.labels))], 1)
    types = np.where(task.labels < 2, "low", "high")
    return dataclasses.replace(task, kind="answers", labels=labels, types=types)


def test_what_is_wrong_with_answers_is_told() -> None:
    task = answered()
    check_task(task)
    with pytest.raises(UserError, match=r"received 4 for .*, expected 0 to 3, or -1"):
        check_task(dataclasses.replace(task, labels=np.where(task.labels == 1, 4, task.labels)))
    with pytest.raises(UserError, match=r"expected integers of shape \(samples, answers\)"):
        check_task(dataclasses.replace(task, labels=task.labels[:, 0]))
    with pytest.raises(UserError, match=r"types: received .*, expected strings"):
        check_task(dataclasses.replace(task, types=task.labels[:, 0]))


def test_from_search_to_bundle_with_scores_by_type(tmp_path: Path) -> None:
    task = answered()
    config = CONFIG.override("train", unimodal_logits=True, epochs=6)
    found = bmnas.search(task, run=tmp_path / "run", config=config, strategy="random")
    assert found.metrics["metric"] == "vqa_accuracy"
    trained = bmnas.train(tmp_path / "run" / "genotype.json", task)
    test = trained.metrics["test"]
    share = np.mean(task.types[task.samples("test")] == "low")
    whole = share * test["by_type"]["low"] + (1 - share) * test["by_type"]["high"]
    assert test["score"] == pytest.approx(whole)
    tables = run_tables(RunMetrics.load(tmp_path / "run" / "metrics.json"))
    assert {"fused, low", "fused, high"} <= {row[0] for row in tables[0].rows}

    bundle = export_bundle(bmnas.load_network(trained.network), task, tmp_path / "bundle")
    assert bundle.parity.agree == bundle.parity.rows
    rows = task.samples("test")
    answer = Session.open(tmp_path / "bundle").run(
        {m.name: m.data[rows].astype(np.float32) for m in task.modalities}
    )
    served = torch.from_numpy(answer["probabilities"])
    assert HEAD.score(served, torch.from_numpy(task.labels[rows])) == pytest.approx(test["score"])


def test_a_task_file_names_answers_and_types(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given_ = np.array([["no", "yes"][n] for n in np.arange(90) % 2])
    np.savez(
        tmp_path / "data.npz",
        a=rng.normal(size=(90, 4)),
        b=rng.normal(size=(90, 4)),
        given=np.stack([given_, np.where(rng.random(90) < 0.5, "yes", "")], 1),
        part=np.arange(90) % 3,
        asked=np.where(np.arange(90) < 45, "number", "other"),
    )
    (tmp_path / "task.toml").write_text(
        'name = "t"\nkind = "answers"\ndata = "data.npz"\nlabels = "given"\nsplit = "part"\n'
        'types = "asked"\n'
        '[modality.a]\narray = "a"\ntype = "vector"\n[modality.b]\narray = "b"\ntype = "vector"\n'
    )
    task = load_task(tmp_path)
    check_task(task)
    assert (task.class_names, task.labels.shape) == (("no", "yes"), (90, 2))
    assert task.types is not None
    assert set(task.types) == {"number", "other"}
