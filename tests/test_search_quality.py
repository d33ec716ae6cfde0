"""benchmarks/search_quality.py runs, goes on where it was, and judges by the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_problems import tiny_samples
from tiny_tables import TABLE_CONFIG, build_tiny, made_table
from tiny_tasks import tiny_task

from benchmarks import search_quality
from benchmarks.one_shot import discretise, one_shot_scores
from benchmarks.search_report import collapsed, found_row, judged, markdown, replay_row, truth
from bmnas.errors import UserError
from bmnas.genotype import Cell, Genotype, Step
from bmnas.metrics import Objective
from bmnas.supernet import Supernet

FEATURES = ("m0.1", "m0.2", "m1.1")


def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet([3, 5, 4], cells=2, steps=2, channels=4, length=4, classes=4, dropout=0.1)


def genotype(*steps: Step, inputs: tuple[str, str] = ("m0.1", "m1.1")) -> Genotype:
    return Genotype(FEATURES, 4, 4, (Cell(inputs, steps), Cell(("m0.2", "cell1"), steps)))


CHAIN = Step("attention", ("y", "x")), Step("concat_fc", ("step1", "x"))


def test_a_discretised_supernet_has_the_weights_of_one_genotype() -> None:
    network = supernet()
    discretise(network, genotype(*CHAIN))
    weights = network.architecture_weights()
    np.testing.assert_allclose(weights.alpha[0], [1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(weights.alpha[1], [0, 1, 0, 1], atol=1e-12)
    for beta, gamma in zip(weights.beta, weights.gamma, strict=True):
        np.testing.assert_allclose(beta[0], [1, 1], atol=1e-12)
        np.testing.assert_allclose(beta[1], [1, 0, 1], atol=1e-12)
        np.testing.assert_allclose(gamma, [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]], atol=1e-12)


def test_what_the_supernet_cannot_tell_apart_has_one_key() -> None:
    def key(*steps: Step, inputs: tuple[str, str] = ("m0.1", "m1.1")) -> tuple[bytes, ...]:
        return discretise(supernet(), genotype(*steps, inputs=inputs))

    swapped = CHAIN[0], Step("concat_fc", ("y", "step1"))
    assert key(*CHAIN) == key(*swapped)
    assert key(*CHAIN) != key(*CHAIN, inputs=("m0.1", "m0.2"))
    assert key(*CHAIN) != key(CHAIN[0], Step("concat_fc", ("x", "y")))
    dead = [(CHAIN[0], Step("zero", pair)) for pair in (("x", "y"), ("x", "step1"))]
    assert key(*dead[0]) == key(*dead[1]) != key(*CHAIN)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_scores_are_those_of_the_discretised_supernet(batch_statistics: bool) -> None:
    network, samples = supernet().eval(), tiny_samples(40)
    genotypes = [genotype(*CHAIN), genotype(CHAIN[0], Step("zero", ("x", "y"))), genotype(*CHAIN)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scores = one_shot_scores(
        network, genotypes, samples, Objective("multiclass"), batch_statistics=batch_statistics
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert scores[0] == scores[2]
    if not batch_statistics:
        for one, score in zip(genotypes, scores, strict=True):
            discretise(network, one)
            logits = network(samples.batch(torch.arange(40))[0])
            assert Objective("multiclass").score(logits, samples.labels) == score


def test_rows_say_how_good_what_was_found_is() -> None:
    table = made_table()
    best = table.best()
    row = found_row(table, [best.genotype, table.genotypes[0]])
    first = table.at(0)
    assert row["percentile_median"] == (100 + table.percentile(first)) / 2
    assert row["percentile_worst"] == table.percentile(first)
    assert row["regret_mean"] == table.regret(first) / 2
    assert row["regret_worst"] == table.regret(first)
    assert row["test_mean"] == pytest.approx((np.mean(best.test) + np.mean(first.test)) / 2)
    assert judged(table, [best])["regret_worst"] == 0
    few, many = (replay_row(table, "random", budget, 5) for budget in (2, 200))
    assert many["regret_mean"] < few["regret_mean"] < few["regret_worst"]


def test_a_collapse_is_seen() -> None:
    def found(*steps: Step, inputs: tuple[str, str]) -> dict[str, bool]:
        return collapsed(Genotype(FEATURES, 4, 4, (Cell(inputs, steps),)))

    total, dead = Step("sum", ("x", "y")), Step("zero", ("x", "y"))
    assert found(total, dead, inputs=("m0.1", "m1.1")) == {"sums": True, "one_modality": False}
    assert found(*CHAIN, inputs=("m0.1", "m0.2")) == {"sums": False, "one_modality": True}
    assert found(dead, dead, inputs=("m0.1", "m1.1")) == {"sums": True, "one_modality": True}


def test_the_truth_knows_how_far_validation_tells_test() -> None:
    exact, noisy = truth(made_table(noise=0)), truth(made_table(noise=3))
    assert exact["tau_validation_test"] == pytest.approx(1)
    assert 0 < noisy["tau_validation_test"] < 0.5
    assert exact["tau_between_seeds"] > noisy["tau_between_seeds"]
    assert exact["best_of_validation"]["percentile_worst"] == 100
    assert "tau_between_seeds" not in truth(made_table(seeds=1))


def test_a_report_is_measured_and_goes_on_where_it_was(tmp_path: Path) -> None:
    task = tiny_task()
    config = TABLE_CONFIG.override("search", rerank=2, epochs=2)
    table = build_tiny(tmp_path, task=task, config=config)
    backbones = tmp_path / "table" / "backbones"
    words = table, task, backbones, tmp_path / "runs", 2, 1
    report = search_quality.measure(*words)
    assert [found["seed"] for found in report["found"]] == [0, 1]
    assert {"bmnas", "bmnas: Algorithm 1 alone"} < set(report["rows"])
    assert any(name.startswith("evolution, ") for name in report["rows"])
    assert len((tmp_path / "runs/0/rerank.jsonl").read_text().splitlines()) == 3
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("found.json")}
    assert len(times) == 2
    again = search_quality.measure(*words)
    assert json.dumps(again) == json.dumps(report)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    text = markdown(report)
    assert text.startswith("| search |")
    assert f"{len(table)} networks" in text
    # The features of a search hold no test data.
    manifests = list((tmp_path / "runs" / "features").glob("*/manifest.json"))
    rows = [json.loads(path.read_text())["rows"] for path in manifests]
    assert rows == [len(task.samples("train", "validation"))] * 2


def test_settings_without_short_trainings_are_refused(tmp_path: Path) -> None:
    table = made_table()
    about = {**table.about, **TABLE_CONFIG.to_dict()}
    with pytest.raises(UserError, match="without rerank"):
        search_quality.measure(
            dataclasses.replace(table, about=about), tiny_task(), tmp_path, tmp_path, 1, 1
        )
