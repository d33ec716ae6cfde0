from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_problems import tiny_problem
from tiny_tasks import CONFIG, tiny_task, write_tiny_task

import bmnas
import bmnas.pipeline.search
from bmnas.machine.errors import UserError
from bmnas.machine.profiling import StepRecorder, _require_whole
from bmnas.strategies.bilevel import search_bilevel

TRACE = "search.pt.trace.json"


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bmnas.pipeline.search, "write_pictures", lambda *args: None)


def steps_of(trace: Path) -> list[str]:
    """Return the names of the recorded steps in the order of time."""
    events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    steps = [e for e in events if e.get("cat") == "user_annotation" and e["name"].endswith(" step")]
    return [event["name"] for event in sorted(steps, key=lambda event: event["ts"])]


def test_a_profiled_search_finds_what_it_would_have_found(tmp_path: Path) -> None:
    config = CONFIG.override("search", epochs=3, rerank=1)
    found = [
        bmnas.search(tiny_task(), run=tmp_path / name / "run", config=config, profile=name == "b")
        for name in ("a", "b")
    ]
    plain, profiled = (result.run for result in found)
    for name in ("history.jsonl", "rerank.jsonl", "genotype.json"):
        assert (plain / name).read_bytes() == (profiled / name).read_bytes()
    assert not (plain / TRACE).exists()
    assert found[0].profile is None
    profile = found[1].profile
    assert profile is not None
    assert profile.trace == profiled / TRACE
    assert steps_of(profile.trace) == ["weights step"] * 2 + ["architecture step"] * 2
    assert profile.steps == 4
    names = [operation.name for operation in profile.operations]
    assert "aten::addmm" in names
    assert not {"weights step", "ProfilerStep*"} & set(names)
    milliseconds = [operation.milliseconds for operation in profile.operations]
    assert milliseconds == sorted(milliseconds, reverse=True)
    assert 0 < sum(operation.share for operation in profile.operations) <= 1


@pytest.mark.parametrize(
    ("epochs", "batch", "expected"),
    [
        # Forty train and 24 validation samples: the ends of both passes of the second epoch.
        (3, 4, ["weights step"] * 4 + ["architecture step"] * 4),
        # One epoch of two and one steps: the first one warms up.
        (1, 20, ["weights step", "architecture step"]),
        (1, 40, ["architecture step"]),
        (2, 40, ["weights step", "architecture step"]),
    ],
)
def test_the_steps_where_the_passes_meet_are_recorded(
    tmp_path: Path, epochs: int, batch: int, expected: list[str]
) -> None:
    recorder = StepRecorder(tmp_path / TRACE, torch.device("cpu"))
    search_bilevel(tiny_problem(tmp_path, recorder=recorder, epochs=epochs, batch_size=batch))
    assert steps_of(tmp_path / TRACE) == expected
    assert recorder.profile is not None
    assert recorder.profile.steps == len(expected)


def test_the_trace_is_there_as_soon_as_its_epoch_is_over(tmp_path: Path) -> None:
    recorder = StepRecorder(tmp_path / TRACE, torch.device("cpu"))
    problem = tiny_problem(tmp_path, recorder=recorder, epochs=4)

    def stop(parts: object, records: list[object]) -> None:
        if len(records) == 2:
            raise KeyboardInterrupt

    problem.checkpoint.save = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        search_bilevel(problem)
    assert steps_of(tmp_path / TRACE)


def test_a_trace_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "whole").write_text('{"traceEvents": []}\n')
    (tmp_path / "cut").write_text('{"traceEvents": [')
    _require_whole(tmp_path / "whole")
    with pytest.raises(OSError, match="could not be written whole, is the disk full"):
        _require_whole(tmp_path / "cut")


def test_only_algorithm_1_has_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--profile records the steps of strategy bmnas, received"):
        bmnas.search(tiny_task(), run=tmp_path / "run", strategy="random", profile=True)
    assert not (tmp_path / "run").exists()


def test_the_command_prints_operations_and_where_the_trace_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ("search", "--task", "task.toml", "--preset", "tiny-preset.toml", "--profile")
    printed = bmnas_command(*words)
    assert printed.status == 0, printed
    assert "Operations of 4 steps, time in themselves" in printed.out
    assert f"Trace: runs/tiny/{TRACE}" in printed.err
    again = bmnas_command(*words, "--resume")
    assert "note: no epoch of the search was left, so there is nothing to prof" in again.err
    assert "Operations" not in again.out
    found = json.loads(bmnas_command(*words, "--overwrite", "--json").out)
    assert found["profile"]["trace"] == f"runs/tiny/{TRACE}"
    assert found["profile"]["operations"]
    assert bmnas_command(*words[:-1], "--overwrite").status == 0
    assert not (tmp_path / "runs" / "tiny" / TRACE).exists()
    message = one_line_error(bmnas_command(*words, "--strategy", "random", "--overwrite"))
    assert message.startswith("--profile records the steps")
