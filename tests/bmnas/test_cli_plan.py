from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_tasks import write_tiny_task

from bmnas.lab import planning


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with task.toml and tiny-preset.toml; the calibration is short."""
    monkeypatch.setattr(planning, "_BUDGET", 0.05)
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TASK = ("plan", "--task", "task.toml", "--preset", "tiny-preset.toml")
NO_TASK = ("plan", "--preset", "tiny-preset.toml", "--features", "8,4", "--samples", "100")


def test_a_task_is_planned_and_nothing_is_left(here: Path) -> None:
    before = sorted(here.rglob("*"))
    printed = bmnas_command(*TASK)
    assert printed.status == 0, printed
    for words in ("feature cache on disk", "backbones", "search weights", "total"):
        assert words in printed.out
    assert "Algorithm 1 elsewhere: not measured" in printed.out
    assert printed.err == ""
    assert "rerank" not in printed.out
    assert sorted(here.rglob("*")) == before


def test_a_search_of_mmnas_is_planned_for_a_task(here: Path) -> None:
    printed = bmnas_command(*TASK, "--strategy", "mmnas")
    assert printed.status == 0, printed
    assert "search weights" in printed.out
    # Nothing is counted for GPUs, whose arithmetic is that of Algorithm 1.
    assert "not measured" not in printed.out
    refused = bmnas_command(*NO_TASK, "--strategy", "mmnas")
    assert (refused.status, len(refused.err.strip().splitlines())) == (2, 1)
    assert "received --samples with --strategy mmnas, expected a task" in refused.err


def test_json_is_one_object(here: Path) -> None:
    printed = bmnas_command(*NO_TASK, "--epochs", "5", "--rerank", "2", "--json")
    assert (printed.status, printed.err) == (0, "")
    found = json.loads(printed.out)
    assert found["samples"] == {"train": 80, "validation": 20}
    assert found["cache_bytes"] == 100 * 4 * 12 * 4
    assert (found["search"]["epochs"], found["preset"]) == (5, "tiny-preset.toml")
    assert found["seconds"]["rerank"] > 0
    assert found["hardware"]["threads"] > 0
    assert {card["name"] for card in found["arithmetic"]} >= {"RTX 4090", "H100 SXM"}


def test_several_seeds_and_a_precision_are_planned(here: Path) -> None:
    printed = bmnas_command(*NO_TASK, "--seeds", "3", "--json")
    assert printed.status == 0, printed
    assert json.loads(printed.out)["seeds"] == 3
    printed = bmnas_command(*NO_TASK, "--seeds", "3", "--precision", "bfloat16", "--json")
    assert printed.status == 0, printed
    assert json.loads(printed.out)["search"]["precision"] == "bfloat16"


def test_without_a_task_it_says_what_it_cannot_know(here: Path) -> None:
    printed = bmnas_command(*NO_TASK)
    assert printed.status == 0, printed
    assert printed.err.startswith("note: without a task there are no backbones and features")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "task.toml", "--samples", "9"), "received a task and --samples, which a task"),
        (("--data", ".", "--features", "3,4"), "received a task and --features, which a task"),
        (("--features", "3,4"), "received --features without --samples, expected how many there"),
        (("--samples", "100"), "nothing says which features there are"),
        (("--samples", "3", "--preset", "ntu-1"), "--samples: received 3 samples"),
        (("--samples", "9", "--preset", "ntu"), "received preset 'ntu', expected one of"),
        (("--samples", "99", "--features", "x"), "--features: received 'x', expected the channels"),
        (("--task", "digit"), "received task 'digit', expected digits"),
        (("--epochs", "0"), "--epochs: received 0, expected at least 1"),
        (
            ("--cache-dtype", "half"),
            "--cache-dtype: received 'half', expected one of float32, float16",
        ),
        (("--candidates", "9"), "strategy bmnas: received --candidates, which it does not read"),
        (("--device", "tpu"), "received device 'tpu'"),
    ],
)
def test_wrong_input_is_one_line(here: Path, words: tuple[str, ...], message: str) -> None:
    assert one_line_error(bmnas_command("plan", *words)).startswith(message)


def test_a_disk_without_room_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shutil.disk_usage(here)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    printed = bmnas_command(*NO_TASK)
    assert printed.status == 0, printed
    assert "note: the feature cache finds no room on the disk: give --run a folder" in printed.err
