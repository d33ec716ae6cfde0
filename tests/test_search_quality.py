"""benchmarks/search_quality.py runs, goes on where it was, and judges by the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_tables import TABLE_CONFIG, build_tiny, made_table
from tiny_tasks import tiny_task

from benchmarks import search_quality
from benchmarks.search_report import collapsed, found_row, judged, markdown, replay_row, truth
from bmnas.machine.errors import UserError
from bmnas.spaces.cells.genotype import Cell, Genotype, Step

FEATURES = ("m0.1", "m0.2", "m1.1")


CHAIN = Step("attention", ("y", "x")), Step("concat_fc", ("step1", "x"))


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
    words = table, config, task, backbones, tmp_path / "runs", 2, 1
    report = search_quality.measure(*words)
    assert [found["seed"] for found in report["found"]] == [0, 1]
    assert {"bmnas", "bmnas: Algorithm 1 alone"} < set(report["rows"])
    assert any(name.startswith("regularised, ") for name in report["rows"])
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
    rows = {
        shape[0] for path in manifests for shape in json.loads(path.read_text())["shapes"].values()
    }
    assert len(manifests) == 2
    assert rows == {len(task.samples("train", "validation"))}


def test_settings_without_short_trainings_are_refused(tmp_path: Path) -> None:
    words = made_table(), TABLE_CONFIG, tiny_task(), tmp_path, tmp_path, 1, 1
    with pytest.raises(UserError, match="without rerank"):
        search_quality.measure(*words)
