"""Degraded inputs: what is done to rows, and what is measured with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from tiny_runs import svg_texts

from bmnas.machine.errors import UserError
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.multimodal import evaluate_fusion
from bmnas.pipeline.robustness import (
    measure_robustness,
    noise,
    replaced_by,
    train_statistics,
    words_left_out,
)
from bmnas.report.metrics import RobustnessMetrics, RunMetrics, TrainedMetrics
from bmnas.report.robustness import draw_robustness, missing_tables, robustness_row
from bmnas.tasks.task import Modality
from bmnas.training.settings import Weighing

CPU = Runtime(torch.device("cpu"), compile=False)


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("multiclass", tiny_networks.KINDS),
        ("multilabel", ("vector", "text")),
        ("regression", ("vector", "tokens")),
    ],
)
def test_with_intact_inputs_the_score_is_the_test_score_for_every_type(
    kind: str, types: tuple[str, ...]
) -> None:
    task = tiny_networks.tiny_task(types, kind=kind)
    made = tiny_networks.tiny_network(task, unimodal_logits=True)
    score = evaluate_fusion(task, made.network, "test", made.task.head, CPU).score
    found = measure_robustness(made, task, CPU)
    assert list(found) == [m.name for m in task.modalities]
    for modality in task.modalities:
        one = found[modality.name]
        assert one.kind == ("words" if modality.type in ("text", "tokens") else "noise")
        assert one.strengths[0] == 0
        assert one.scores[0] == score
    assert measure_robustness(made, task, CPU) == found


def test_a_network_that_reads_one_modality_suffers_from_that_one_alone() -> None:
    task = tiny_networks.tiny_task(("vector", "vector"), test=600)
    made = tiny_networks.tiny_network(task, unimodal_logits=True)
    made.network.weighing = Weighing({"m0": 1.0})
    own, data = made.network.backbone("m0"), task.modality("m0").data
    with torch.no_grad():
        said = own(torch.from_numpy(own.encode(data))).argmax(1).numpy()
        mean = data[task.samples("train")].mean(0, keepdims=True)
        always = int(own(torch.from_numpy(own.encode(mean))).argmax())
    found = measure_robustness(made, dataclasses.replace(task, labels=said), CPU)
    assert {*found["m1"].scores, found["m1"].missing} == {1.0}
    assert found["m0"].scores[0] == 1
    assert list(found["m0"].scores) == sorted(found["m0"].scores, reverse=True)
    assert found["m0"].scores[-1] < 0.9
    assert found["m0"].missing == pytest.approx((said[task.samples("test")] == always).mean())


def test_mean_and_deviation_are_those_of_train_by_column_or_of_all_positions() -> None:
    task = tiny_networks.tiny_task(("vector", "sequence", "image", "waveform"))
    train = task.samples("train")
    for modality, axes in zip(task.modalities, (0, (0, 1), None, None), strict=True):
        rows = modality.data[train].astype(np.float64)
        mean, deviation = train_statistics(task, modality)
        np.testing.assert_allclose(mean, rows.mean(0))
        np.testing.assert_allclose(deviation, rows.std(axis=axes))
    # Two samples that share a row count twice.
    shared = Modality("v", "vector", np.array([[0.0], [4.0]]), index=np.zeros(88, int))
    shared.index[train[:3]] = 1  # type: ignore[index]
    mean, deviation = train_statistics(task, shared)
    assert (mean, deviation) == (pytest.approx(1.0), pytest.approx(np.sqrt(3)))


def test_noise_is_as_strong_as_asked_and_pixels_stay_pixels() -> None:
    rows = np.zeros((4000, 2), np.float32)
    noisy = noise(np.array([0.5, 0.0]))(rows)
    assert noisy.dtype == np.float32
    assert noisy[:, 0].std() == pytest.approx(0.5, rel=0.05)
    assert not noisy[:, 1].any()
    pixels = np.full((50, 8, 8), 250, np.uint8)
    noisy = noise(np.array(20.0))(pixels)
    assert noisy.dtype == np.uint8
    # Cut off at white, not wrapped around to black.
    assert noisy.max() == 255
    assert noisy.min() > 150
    assert replaced_by(np.full((8, 8), 3.6))(pixels).max() == 4


def test_words_are_left_out_and_what_follows_moves_up() -> None:
    texts = np.array([" ".join(f"w{n}" for n in range(400)), "one"])
    assert words_left_out(1.0)(texts).tolist() == ["", ""]
    few, many = (words_left_out(share)(texts)[0].split() for share in (0.1, 0.5))
    assert len(few) == pytest.approx(360, abs=20)
    assert len(many) == pytest.approx(200, abs=35)
    # What a little leaves out, more does too.
    assert set(many) < set(few)
    tokens = np.arange(1, 401).reshape(1, 400)
    (left,) = words_left_out(0.5)(tokens)
    content = left[left > 0]
    assert len(content) == pytest.approx(200, abs=35)
    assert (np.diff(content) > 0).all()
    assert not left[len(content) :].any()
    assert not words_left_out(1.0)(tokens).any()


def run_of(score: float, missing: float = 0.25) -> RunMetrics:
    curve = RobustnessMetrics("noise", (0.0, 1.0), (score, score / 2), missing)
    words = RobustnessMetrics("words", (0.0, 0.5), (score, 0.5), missing)
    return RunMetrics(
        metric="accuracy",
        test=TrainedMetrics(score),
        robustness={"image": curve, "text": words},
    )


def test_rows_are_over_seeds_and_of_ways_whose_runs_were_all_measured(tmp_path: Path) -> None:
    row = robustness_row("search bmnas", [run_of(0.8), run_of(0.6, 0.35)])
    assert row is not None
    (table,) = missing_tables({"digits": [row]})
    assert table.title == "Missing modality, digits, accuracy"
    assert table.columns[1:] == ("nothing missing", "without image", "without text")
    assert table.rows[0][1:3] == ("0.7000 ± 0.1414", "0.3000 ± 0.0707")
    assert [score.mean for score in row.curves["image"].scores] == pytest.approx([0.7, 0.35])
    shown = svg_texts(draw_robustness("digits", [row] * 12))
    assert {"image", "text", "missing", "test accuracy", "share of words left out"} <= set(shown)
    assert shown.count("search bmnas") == 8
    unmeasured = dataclasses.replace(run_of(0.8), robustness={})
    assert robustness_row("search bmnas", [run_of(0.8), unmeasured]) is None
    assert robustness_row("search bmnas", [unmeasured]) is None

    run_of(0.8).save(tmp_path / "metrics.json")
    assert RunMetrics.load(tmp_path / "metrics.json") == run_of(0.8)
    text = (tmp_path / "metrics.json").read_text().replace("0.4\n", "0.4, 0.3\n")
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"robustness\.image\.scores: received 3, expected 2"):
        RunMetrics.load(tmp_path / "metrics.json")
