"""Tasks whose labels are numbers, all the way to a bundle that answers in their own units."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bmnas_export import export_bundle
from bmnas_export.verify import verify_bundle
from bmnas_serve import manifest as bundle_manifest
from bmnas_serve.errors import BundleError
from bmnas_serve.session import Session
from command_line import bmnas_command
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from tiny_runs import svg_texts
from tiny_tasks import CONFIG, tiny_task

import bmnas
from bmnas.machine.errors import UserError
from bmnas.report.metrics import RunMetrics
from bmnas.report.predictions import scatter_parts
from bmnas.report.record import load_run
from bmnas.report.style import figure_of
from bmnas.report.tables import run_tables
from bmnas.tasks import Task, check_task, load_task
from bmnas.tasks.check import check_test
from bmnas.tasks.kinds import LabelScale, task_kind
from bmnas.training.heads import head_for, head_of
from bmnas.training.weighing import fit_weighing, held_out_loss

SCALE = LabelScale((50.0, -3.0), (10.0, 0.5))
HEAD = head_for("regression", names=("age", "mood"), scale=SCALE)


def priced(numbers: int = 1, samples: int = 192) -> Task:
    """The digits of the tiny task as amounts: 1000 and 250 for a bit of each modality."""
    task = tiny_task(samples=samples)
    bits = np.stack([task.labels % 2, task.labels // 2], 1)
    amounts = bits @ np.array([[1000.0, 2], [250.0, -1]]) + np.array([5000.0, 0])
    names = ("price", "rating")
    return dataclasses.replace(
        task, kind="regression", labels=amounts[:, :numbers], class_names=names[:numbers]
    )


def test_the_loss_is_that_of_standardised_numbers() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    labels = torch.tensor([[60.0, -2.5], [30.0, -3.0]], dtype=torch.float64)
    # Standardised, the labels are (1, 1) and (-2, 0): errors of 2 count 1.5, those of 1 a half.
    assert HEAD.sample_losses(logits, labels).tolist() == pytest.approx([0.25, 1.5])
    assert HEAD.loss(logits, labels).item() == pytest.approx(0.875)
    assert HEAD.probabilities(logits).tolist() == [[60.0, -3.0], [50.0, -2.0]]
    both = HEAD.network_losses(torch.stack([logits, logits + 1], 1), labels)
    assert both.tolist() == pytest.approx([0.875, HEAD.loss(logits + 1, labels).item()])


def test_labels_that_are_all_the_same_have_nothing_to_explain() -> None:
    labels = torch.full((100, 2), 0.1, dtype=torch.float64)
    labels[0, 1] = 0.2
    # The mean of many equal numbers is rounded.
    assert any((labels[:n, 0] != labels[:n, 0].mean()).any() for n in range(3, 100))
    for n in range(3, 100):
        details = HEAD.details(torch.zeros(n, 2), labels[:n])
        assert details["r2_age"] == details["pearson_age"] == 0
        assert details["r2_mood"] < 0


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(40, 2)))
    labels = HEAD.probabilities(logits + 0.3 * torch.from_numpy(rng.normal(size=(40, 2))))
    predicted, wanted = HEAD.probabilities(logits).numpy(), labels.numpy()
    assert HEAD.score(logits, labels) == pytest.approx(r2_score(wanted, predicted))
    details = HEAD.details(logits, labels)
    for column, name in enumerate(HEAD.names):
        own = wanted[:, column], predicted[:, column]
        assert details[f"mae_{name}"] == pytest.approx(mean_absolute_error(*own))
        assert details[f"rmse_{name}"] == pytest.approx(root_mean_squared_error(*own))
        assert details[f"r2_{name}"] == pytest.approx(r2_score(*own))
        assert details[f"pearson_{name}"] == pytest.approx(np.corrcoef(*own)[0, 1])
    assert HEAD.columns(logits, labels)["prediction mood"] == pytest.approx(predicted[:, 1])
    flat = torch.full((3, 2), 7.0)
    assert HEAD.score(torch.zeros(3, 2), flat) == 0
    with pytest.raises(UserError, match="received no scale"):
        head_for("regression").score(logits, labels)


def test_large_labels_keep_their_digits() -> None:
    seconds = 1.7e9 + np.arange(8.0)[:, None]  # float32 tells 128 of them apart
    task = dataclasses.replace(priced(samples=24), labels=np.tile(seconds, (3, 1)))
    head = head_of(task)
    labels = torch.from_numpy(task.labels.astype(task_kind("regression").dtype))
    assert task.scale is not None
    exact = ((labels - task.scale.mean[0]) / task.scale.deviation[0]).float()
    assert head.loss(exact, labels).item() == pytest.approx(0, abs=1e-12)
    assert head.loss(exact + 1, labels).item() == pytest.approx(0.5)


def test_weights_of_a_sum_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    parts = torch.from_numpy(rng.normal(size=(2, 4000, 2)))
    labels = HEAD.probabilities(0.8 * parts[0] + 0.3 * parts[1] + 0.1)
    members = {
        "one": parts[0],
        "two": parts[1],
        "noise": torch.from_numpy(rng.normal(size=(4000, 2))),
    }
    found = fit_weighing(members, labels, HEAD)
    assert set(found.weights) == {"one", "two"}
    assert list(found.weights.values()) == pytest.approx([0.8, 0.3], abs=0.01)
    assert found.bias == pytest.approx(0.1, abs=0.01)
    assert held_out_loss(members, labels, HEAD) < 0.001


def test_labels_of_tables_become_numbers(tmp_path: Path) -> None:
    kind, seen = task_kind("regression"), np.array([True, True, False])
    labels, names = kind.encode(np.array(["1.5", "-2e3", "?"]), seen, ("price",), "labels")
    assert (names, labels[:2].tolist(), bool(np.isnan(labels[2, 0]))) == (
        ("price",),
        [[1.5], [-2000.0]],
        True,
    )
    with pytest.raises(UserError, match=r"received '' in row 0, '1,5' in row 1 \(2\), expected"):
        kind.encode(np.array(["", "1,5", "2"]), seen, ("price",), "labels")
    assert kind.encode(np.zeros((3, 2)), seen, ("box",), "labels")[1] == ("box 1", "box 2")

    rng = np.random.default_rng(0)
    rows = ["a,b,price,stars,part"]
    rows += [f"{rng.normal()},{rng.normal()},{100 + n},{n % 5 / 2},{n % 3}" for n in range(30)]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    text = (
        'name = "t"\nkind = "regression"\ndata = "data.csv"\nlabels = LABELS\nsplit = "part"\n'
        '[modality.a]\ncolumns = ["a"]\ntype = "vector"\n'
        '[modality.b]\ncolumns = ["b"]\ntype = "vector"\n'
    )
    (tmp_path / "task.toml").write_text(text.replace("LABELS", '["price", "stars"]'))
    task = load_task(tmp_path)
    check_task(task)
    assert (task.class_names, task.labels.shape) == (("price", "stars"), (30, 2))
    assert task.labels[3].tolist() == [103.0, 1.5]
    (tmp_path / "task.toml").write_text(text.replace("LABELS", '"price"'))
    assert load_task(tmp_path).class_names == ("price",)
    (tmp_path / "task.toml").write_text(text.replace("LABELS", '["price", "stars"]'))
    (tmp_path / "data.csv").write_text("\n".join([*rows, "1,2,,0.5,0", "1,2,7,,2"]))
    with pytest.raises(UserError, match="2 of 32 rows have no label: rows 30, 31"):
        load_task(tmp_path)
    (tmp_path / "task.toml").write_text(
        text.replace("LABELS", '["price", "stars"]\nunlabelled = "skip"')
    )
    task = load_task(tmp_path)
    check_task(task)
    check_test(task)
    assert (len(task.labels), task.left_out[0]) == (30, "row 30, without a label")
    (tmp_path / "task.toml").write_text(text.replace("LABELS", '["price", "prize"]'))
    with pytest.raises(UserError, match=r"received array 'prize', .*did you mean 'price'"):
        load_task(tmp_path)


def test_numbers_of_new_rows_are_predicted_from_a_table(tmp_path: Path) -> None:
    rows = [f"{n % 7},{n % 5},{100 + n % 7},{n % 5 / 2},{n % 3}" for n in range(60)]
    (tmp_path / "data.csv").write_text("\n".join(["a,b,price,stars,part", *rows]))
    (tmp_path / "task.toml").write_text(
        'name = "t"\nkind = "regression"\ndata = "data.csv"\nlabels = ["price", "stars"]\n'
        'split = "part"\n[modality.a]\ncolumns = ["a"]\ntype = "vector"\n'
        '[modality.b]\ncolumns = ["b"]\ntype = "vector"\n'
    )
    task, config = load_task(tmp_path), CONFIG.override("train", freeze_backbones=True)
    trained = bmnas.train_fusion("concat", task, run=tmp_path / "run", config=config)
    export_bundle(bmnas.load_network(trained.network), task, tmp_path / "bundle")
    (tmp_path / "new.csv").write_text("a,b\n" + "\n".join(f"{n % 7},{n % 5}" for n in range(60)))
    words = [sys.executable, "-m", "bmnas", "predict", "bundle", "new.csv", "--out", "out.csv"]
    subprocess.run(words, cwd=tmp_path, check=True)
    found, known = (
        list(csv.DictReader(file.read_text().splitlines()))
        for file in (tmp_path / "out.csv", tmp_path / "run" / "predictions.csv")
    )
    spread = bmnas_command("check", "--task", tmp_path / "task.toml", "--json")
    of = json.loads(spread.out)["labels"]["price"]["train"]
    train = task.labels[task.samples("train"), 0]
    assert (of["least"], of["median"], of["most"]) == (100, float(np.median(train)), 106)
    assert of["mean"] == pytest.approx(train.mean())
    assert "Labels" in bmnas_command("check", "--task", tmp_path / "task.toml").out
    assert list(found[0]) == ["row", "price", "stars"]
    for row in known:
        own = found[int(row["sample"])]
        assert float(own["price"]) == pytest.approx(float(row["prediction price"]), rel=1e-5)
        assert float(own["stars"]) == pytest.approx(float(row["prediction stars"]), abs=1e-4)
    pytest.importorskip("matplotlib")
    texts = svg_texts(figure_of(*scatter_parts(load_run(tmp_path / "run"))))
    assert {"label price", "label stars", "Test predictions by label"} < set(texts)
    (tmp_path / "run" / "predictions.csv").write_text("label a,prediction a\n1,x\n")
    with pytest.raises(UserError, match=r"predictions\.csv: cannot be read"):
        scatter_parts(load_run(tmp_path / "run"))


def test_what_is_wrong_with_numbers_is_told() -> None:
    task = priced()
    check_task(task)
    broken = task.labels.copy()
    broken[1] = np.nan  # of validation
    with pytest.raises(UserError, match=r"received nan for sample 1 .*, expected finite numbers"):
        check_task(dataclasses.replace(task, labels=broken))
    unlabelled = task.labels.copy()
    unlabelled[2] = np.nan  # of test
    check_task(dataclasses.replace(task, labels=unlabelled))
    with pytest.raises(UserError, match="received nan for sample 2"):
        check_test(dataclasses.replace(task, labels=unlabelled))
    with pytest.raises(UserError, match=r"'price': received 5000\.0 for every train sample"):
        check_task(dataclasses.replace(task, labels=np.full_like(task.labels, 5000)))
    with pytest.raises(UserError, match=r"expected numbers of shape \(samples, 1\)"):
        check_task(dataclasses.replace(task, labels=task.labels[:, 0]))


def test_from_search_to_a_bundle_in_the_units_of_the_labels(tmp_path: Path) -> None:
    task = priced(2)
    config = CONFIG.override("train", unimodal_logits=True, epochs=10, max_lr=1e-2)
    config = config.override("unimodal", epochs=16, max_lr=1e-2, early_stopping=True, folds=2)
    found = bmnas.search(task, run=tmp_path / "run", config=config)
    assert found.metrics["metric"] == "r2"
    trained = bmnas.train(tmp_path / "run" / "genotype.json", task)
    test = trained.metrics["test"]
    assert 0.5 < test["score"] <= 1
    assert {"m0", "m1"} == set(trained.metrics["importance"]["modalities"])
    # RMSE and R² say the same of one number.
    for name, own in zip(task.class_names, task.labels[task.samples("test")].T, strict=True):
        details = test["details"]
        r2 = 1 - (details[f"rmse_{name}"] / own.std()) ** 2
        assert r2 == pytest.approx(details[f"r2_{name}"])
    tables = run_tables(RunMetrics.load(tmp_path / "run" / "metrics.json"))
    assert "fused, mae price" in " ".join(row[0] for row in tables[0].rows)

    bundle = export_bundle(bmnas.load_network(trained.network), task, tmp_path / "bundle")
    assert bundle.parity.agree == bundle.parity.rows
    assert (bundle.manifest.task.decision, bundle.manifest.threshold) == ("none", None)
    assert bundle.manifest.scale == dataclasses.asdict(task.scale)
    rows = task.samples("test")
    session = Session.open(tmp_path / "bundle")
    answer = session.run({m.name: m.data[rows].astype(np.float32) for m in task.modalities})
    assert [spec.name for spec in session.outputs] == ["logits", "prediction"]
    assert r2_score(task.labels[rows], answer["prediction"]) == pytest.approx(
        test["score"], abs=1e-4
    )
    assert verify_bundle(tmp_path / "bundle").problems == ()

    data = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    data["scale"]["deviation"][0] *= 2
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="scale: changed after export"):
        bundle_manifest.load(tmp_path / "bundle")


def test_a_fusion_by_hand_learns_numbers(tmp_path: Path) -> None:
    config = CONFIG.override("train", epochs=10, max_lr=1e-2, freeze_backbones=True)
    config = config.override("unimodal", epochs=6, max_lr=1e-2)
    trained = bmnas.train_fusion("gmu", priced(2), run=tmp_path / "run", config=config)
    assert trained.score > 0.5
