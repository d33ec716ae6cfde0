"""The scripts of benchmarks/ run, and say what they should; nothing is timed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_tasks import CONFIG, tiny_task

import bmnas
from benchmarks import gpu, ranks, results, several
from benchmarks.cases import TINY, products, step
from bmnas.supernet import Supernet
from tests.support.plain_supernet import PlainSupernet

CPU = bmnas.Runtime(torch.device("cpu"), compile=False)


def test_every_way_of_fusing_is_measured_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("bmnas.stages.search", "bmnas.stages.train", "bmnas"):
        monkeypatch.setattr(f"{place}.load_preset", lambda _: CONFIG, raising=False)
    facts = results.one_seed(tiny_task(), tmp_path, 0, ["bmnas", "random"])
    assert set(facts) == {"m0 alone", "m1 alone", "late fusion", "search: bmnas", "search: random"}
    assert all(0 <= row["test"] <= 1 for row in facts.values())
    again = results.one_seed(tiny_task(), tmp_path, 0, ["bmnas", "random"])
    assert again == facts


def test_rows_hold_mean_and_sample_deviation_in_per_cent() -> None:
    runs = [
        {"x": {"test": score, "fusion": 10, "seconds": 2.0}, "y": {"test": 1.0, "fusion": 0,
         "seconds": 0.0}}
        for score in (0.5, 0.6, 0.7)
    ]  # fmt: skip
    rows = results.summary(runs)
    assert rows["x"]["mean"] == pytest.approx(60)
    assert rows["x"]["std"] == pytest.approx(10)
    lines = results.markdown(rows).splitlines()
    assert lines[2] == "| x | 60.00 ± 10.00 | 50.00, 60.00, 70.00 | 10 | 2.0 |"
    assert lines[3] == "| y | 100.00 ± 0.00 | 100.00, 100.00, 100.00 |  |  |"


def test_the_correctness_checks_pass_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.failed(gpu.correctness(TINY, CPU, CPU)) == []
    monkeypatch.setattr(gpu, "copy_parameters", lambda *_: None)
    wrong = gpu.failed(gpu.correctness(TINY, CPU, CPU))
    assert "supernet, eager, float64: logits" in wrong
    assert "supernet, eager, float64: gradients" in wrong


def test_the_report_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "report.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--device", "cpu", "--out", str(out)])
    monkeypatch.setattr(gpu, "correctness", lambda *_: {})
    monkeypatch.setattr(gpu, "speed", lambda *_: {"step": {"median_ms": 1.0}})
    gpu.main()
    report = json.loads(out.read_text())
    assert report["milliseconds"] == {"step": {"median_ms": 1.0}}
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize("form", [PlainSupernet, Supernet])
def test_a_step_runs(form: type[torch.nn.Module]) -> None:
    step(TINY, form, CPU)()
    products(TINY, CPU)()


def test_a_step_of_ranks_is_measured() -> None:
    found = ranks.measure(TINY, CPU, 3)
    assert found["processes"] == 1
    assert 0 < found["least_ms"] <= found["median_ms"]


def test_several_seeds_at_once_are_measured_against_as_many_in_a_row() -> None:
    found = several.measure(TINY, 2, 2)
    assert set(found) == {"weights", "architecture"}
    for each in (*found["weights"].values(), *found["architecture"].values()):
        assert each["ratio_of_least"] == each["at_once_least_ms"] / each["row_least_ms"]
