"""The scripts of benchmarks/ run, and say what they should; nothing is timed here."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bmnas
from benchmarks import (
    cached,
    gpu,
    gpu_checks,
    gpu_search,
    gpu_speed,
    ntu_epoch,
    ranks,
    scaling,
)
from benchmarks.cases import TINY, products, step
from benchmarks.gpu_report import Report, Setting
from bmnas.spaces.cells.supernet import Supernet
from tests.support.plain_supernet import PlainSupernet

CPU = bmnas.Runtime(torch.device("cpu"), compile=False)
SETTING = Setting(CPU, tiny=True, compiled=False)


def run_part(part: Callable[[Setting, Report], None], folder: Path) -> dict[str, Any]:
    path = folder / "part.json"
    part(SETTING, Report(path))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_correctness_checks_pass_and_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = run_part(gpu_checks.correctness, tmp_path)["checks"]
    assert gpu_checks.failed(checks) == []
    assert {"batches, copied", "supernet, eager, float64: logits"} <= set(checks)
    monkeypatch.setattr(gpu_checks, "copy_parameters", lambda *_: None)
    wrong = gpu_checks.failed(run_part(gpu_checks.correctness, tmp_path)["checks"])
    assert "supernet, eager, float64: logits" in wrong
    assert "supernet, eager, float64: gradients" in wrong
    assert gpu_checks.failed({"x": {"difference": math.nan, "allowed": 1.0}}) == ["x"]


def test_passes_in_turns_are_compared_and_a_stale_weight_is_noticed() -> None:
    device = torch.device("cpu")
    assert gpu_checks.switch_difference(TINY, device, lambda network: network) == 0
    # What CUDA graphs must not do: compute with the weights of their first call.
    stale = gpu_checks.switch_difference(TINY, device, lambda network: copy.deepcopy(network))
    assert stale > 1e-3


def test_steps_and_latency_are_measured(tmp_path: Path) -> None:
    found = run_part(gpu_speed.steps, tmp_path)
    assert set(found) == {"float32", "bfloat16"}
    for precision in found.values():
        floor = precision["products alone"]["queued_ms"]
        step = precision["supernet, eager"]
        assert step["share_of_limit"] == pytest.approx(floor / step["queued_ms"])
    assert len(run_part(gpu_speed.latency, tmp_path)["milliseconds"]) == 2


def test_searches_are_measured_and_note_every_epoch(tmp_path: Path) -> None:
    whole = run_part(gpu_search.whole, tmp_path)
    assert set(whole["seconds_after_epoch"]) == {"1", "2"}
    assert whole["seconds"]["search"] >= whole["seconds"]["search_weights"] > 0
    assert whole["samples"] == {"train": 60, "validation": 24}
    copied = run_part(gpu_search.copied, tmp_path)
    assert copied["result"]["compiled"] is False
    train, _ = gpu_search._samples(SETTING, rows=7)
    assert len(train) == 60
    assert {len(array) for array in train.arrays.values()} == {7}


def test_the_report_is_written_after_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "report.json"
    before: list[list[str]] = []

    def part(name: str, setting: Setting, limit: float, folder: Path) -> dict[str, Any]:
        before.append(list(json.loads(out.read_text())["parts"]) if out.is_file() else [])
        assert limit <= gpu.PARTS[name].limit
        return {"error": "out of memory"} if name == "step" else {"facts": {"x": 1}}

    monkeypatch.setattr(gpu, "in_own_process", part)
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--device", "cpu", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == "step: out of memory"
    names = list(gpu.PARTS)
    assert before == [names[:count] for count in range(len(names))]
    report = json.loads(out.read_text())
    assert list(report["parts"]) == names
    assert report["failures"] == ["step: out of memory"]
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]


def test_a_wrong_piece_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {"a": {"difference": 0.1, "allowed": 0.2}, "b": {"difference": 0.3, "allowed": 0.2}}
    monkeypatch.setattr(gpu, "in_own_process", lambda *_: {"checks": checks})
    report = gpu.measure(SETTING, 100.0, tmp_path / "report.json")
    assert list(report["parts"]) == ["correctness"]
    assert report["failures"] == ["not equal: b"]


def test_a_part_that_takes_too_long_keeps_what_it_has_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(command: list[str], *, timeout: float, **_: Any) -> None:
        Path(command[command.index("--out") + 1]).write_text('{"seconds_after_epoch": {"1": 2}}')
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", slow)
    found = gpu.in_own_process("search, cold", SETTING, 5.0, tmp_path)
    assert found["seconds_after_epoch"] == {"1": 2}
    assert found["stopped"] == "after 5 s"
    assert gpu.in_own_process("step", SETTING, -1.0, tmp_path) == {"left_out": "no time was left"}


def test_a_part_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = gpu.in_own_process("CUDA graphs", SETTING, 300.0, tmp_path)
    assert found["left_out"] == {"why": "for torch.compile on CUDA alone"}
    assert "error" not in found


@pytest.mark.parametrize("form", [PlainSupernet, Supernet])
def test_a_step_runs(form: type[torch.nn.Module]) -> None:
    step(TINY, form, CPU)()
    products(TINY, CPU.device)()


def test_a_step_of_ranks_is_measured() -> None:
    found = ranks.measure(TINY, CPU, 3)
    assert found["processes"] == 1
    assert 0 < found["least_ms"] <= found["median_ms"]


def test_sizes_are_measured_and_drawn(tmp_path: Path) -> None:
    sizes = scaling.Sizes(cells=1, steps=1, features=2, channels=8, length=4)
    found = [scaling.measure(sizes), scaling.measure(replace(sizes, samples=2000))]
    assert all(point["seconds"] > 0 for point in found)
    assert found[1]["resident_bytes"] >= found[0]["resident_bytes"] > 1 << 20
    scaling.draw({"cells": found[:1], "samples": found[1:]}, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    assert [point.samples for point in scaling.points("samples")] == [4000, 16000, 64000]


def test_what_the_cache_saves_is_measured(tmp_path: Path) -> None:
    config = bmnas.load_preset("digits-quick").override("search", epochs=1, rerank=0)
    config = config.override("unimodal", epochs=1)
    task = bmnas.load_task("digits")
    bmnas.search(task, run=tmp_path / "run", config=config)
    found = cached.compare(tmp_path / "run", steps=2, epochs=3)
    batches = [
        len(task.samples(part)) // config.search.batch_size for part in ("train", "validation")
    ]
    assert found["steps"] == 3 * sum(batches)
    seconds = found["search_seconds"]
    assert seconds.keys() == {"cached", "forward", "forward_and_backward"}
    expected = {name: each / seconds["cached"] for name, each in seconds.items()}
    assert found["times_faster"] == pytest.approx(expected)


def test_an_epoch_of_a_search_is_measured_and_multiplied(tmp_path: Path) -> None:
    found = ntu_epoch.measure(tmp_path, (192, 96, 60))
    assert found["cache_bytes"] // (288 * 8 * 7552 * 4) == 1
    assert found["whole_search_hours"] == pytest.approx(found["seconds"]["search"] * 30 / 3600)
    assert found["peak_memory"]["resident_bytes"] > 0
    assert list(tmp_path.iterdir()) == []
