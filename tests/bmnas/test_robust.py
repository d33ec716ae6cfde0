"""Bad data at the command line: status 2, one line, and no trace of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_files import MODALITIES, SAMPLES, arrays, modality, write_task

from bmnas.cli import main

FAST = ["--epochs", "1", "--device", "cpu"]

Command = Callable[..., str]


@pytest.fixture
def error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command that must fail in an otherwise unchanged ``tmp_path``; return its line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BMNAS_DATA", raising=False)

    def run(*arguments: str) -> str:
        before = contents(tmp_path)
        monkeypatch.setattr("sys.argv", ["bmnas", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        assert left.value.code == 2, captured.err
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("error: ")
        assert contents(tmp_path) == before
        return lines[0]

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` but locks, with its content; folders end in a slash."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": (
            b"" if path.is_dir() else path.read_bytes()
        )
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def spoilt(name: str, place: Any, value: Any) -> dict[str, Any]:
    """Return the arrays with one value replaced; ``place`` says where in ``name``."""
    held = arrays()
    held[name] = held[name].copy()
    held[name][place] = value
    return held


WORDS = np.array(["some words"] * SAMPLES)
TEXT = modality("b", type='"text"')
OBJECTS = np.array([{"a": 1}] * SAMPLES, dtype=object)

#: What is wrong, the arguments of ``write_task``, and what the line says. Sample i is of part
#: i % 3: sample 0 in train, 1 in validation, 2 in test.
BAD_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "NaN in train": (
        {"held": spoilt("a", (3, 1), np.nan)},
        "task mine: modality a: NaN or infinite value in row 3, of sample 3 (train)",
    ),
    "infinity in validation": (
        {"held": spoilt("b", (1, 0), np.inf)},
        "task mine: modality b: NaN or infinite value in row 1, of sample 1 (validation)",
    ),
    "class missing from train": (
        {
            "held": arrays(label=np.where(np.arange(SAMPLES) == 4, 2, np.arange(SAMPLES) // 3 % 2)),
            "class_names": '["x", "y", "z"]',
        },
        "task mine: class 'z' missing from train",
    ),
    "label too large": (
        {"held": spoilt("label", 3, 3), "class_names": '["x", "y", "z"]'},
        "task mine: labels out of range: received 3 for sample 3 (train), expected 0 to 2",
    ),
    "label below 0": (
        {"held": spoilt("label", 4, -2)},
        "labels out of range: received -2 for sample 4 (validation), expected 0 to 2",
    ),
    "labels with fractions": (
        {"held": arrays(label=np.linspace(0, 1, SAMPLES))},
        "no validation sample has a label that train has",
    ),
    "label 2 of 0 and 1": (
        {"held": arrays(label=np.full((SAMPLES, 40), 2)), "kind": '"multilabel"'},
        "labels out of range: received 2 for sample 0 (train), expected only 0 and 1",
    ),
    "one modality only": (
        {"modalities": {"a": MODALITIES["a"]}},
        "task mine: one modality only (a), expected two or more",
    ),
    "zero samples in validation": (
        {"held": arrays(part=np.arange(SAMPLES) % 2 * 2)},
        "task mine: zero samples in validation",
    ),
    "zero samples at all": (
        {"held": {name: array[:0] for name, array in arrays().items()}},
        "zero samples in train; zero samples in validation; zero samples in test",
    ),
    "one sample in train": (
        {"held": arrays(part=np.where(np.arange(SAMPLES) == 0, 0, np.arange(SAMPLES) % 2 + 1))},
        "one sample only in train, expected two or more",
    ),
    "text without a word": (
        {"held": arrays(b=np.array(["?!…"] * SAMPLES)), "modalities": TEXT},
        "task mine: modality b: no train text has a word (a letter or digit)",
    ),
    "empty text": (
        {"held": arrays(b=np.where(np.arange(SAMPLES) == 6, "", WORDS)), "modalities": TEXT},
        "task mine: modality b: empty text in row 6, of sample 6 (train)",
    ),
    "wrong shape": (
        {"modalities": modality("a", type='"sequence"')},
        "modality a: received float32 of shape (30, 4), expected rows of (T, D)",
    ),
    "wrong length": (
        {"held": arrays(a=np.zeros((29, 4)))},
        "task mine: modality a has 29 rows and split has 30",
    ),
    "strings for numbers": (
        {"held": arrays(a=WORDS)},
        "in row 7, …), expected floats or integers for type vector",
    ),
    "pickled objects": (
        {"held": arrays(a=OBJECTS)},
        "mine.npz: a: received an array of Python objects, which is never loaded",
    ),
    "index out of range": (
        {
            "held": arrays(row=np.full(SAMPLES, SAMPLES)),
            "modalities": modality("a", index='"row"'),
        },
        "modality a: index out of range: received 30 for sample 0 (train), expected 0 to 29",
    ),
    "part 3": (
        {"held": spoilt("part", 7, 3)},
        "task mine: split: received 3 for sample 7, expected 0, 1 or 2",
    ),
    "a name with a line break": (
        {"name": '"a\\nb"'},
        "task a b: received the task name 'a\\nb', expected letters, digits, _ and -",
    ),
    "an array's name with a line break": (
        {"held": {**arrays(), "c\nd": WORDS}, "labels": '"lable"'},
        "received array 'lable', expected one of a, b, label, part, c d; did you mean 'label'?",
    ),
    "a token beyond any vocabulary": (
        {
            "held": arrays(a=np.full((SAMPLES, 2), 2**40)),
            "modalities": modality("a", type='"tokens"'),
        },
        "modality a: a token outside 0 to 999999 in row 0",
    ),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_bad_data_is_one_line_and_leaves_nothing(
    tmp_path: Path, error_line: Command, what: str
) -> None:
    task, expected = BAD_DATA[what]
    write_task(tmp_path, **task)
    assert expected in error_line("search", "--task", "task.toml", *FAST)
    assert not (tmp_path / "runs").exists()


def test_all_that_is_wrong_comes_at_once(tmp_path: Path, error_line: Command) -> None:
    held = {**spoilt("a", (0, 0), np.nan), "label": np.where(np.arange(SAMPLES) == 3, 9, 0)}
    write_task(tmp_path, held=held, class_names='["x", "y"]')
    line = error_line("search", "--task", "task.toml", *FAST)
    for expected in ("received 9 for sample 3", "NaN or infinite value in row 0", "class 'y' miss"):
        assert expected in line


@pytest.mark.parametrize("kept", [0, 100, -10])
def test_a_truncated_file(tmp_path: Path, error_line: Command, kept: int) -> None:
    write_task(tmp_path)
    path = tmp_path / "mine.npz"
    path.write_bytes(path.read_bytes()[:kept])
    line = error_line("search", "--task", "task.toml", *FAST)
    assert line == "error: task.toml: data: mine.npz: not an .npz file, or a truncated one"


def test_what_is_not_there(tmp_path: Path, error_line: Command) -> None:
    assert "task.toml: cannot be read: No such file" in error_line("search", "--task", "task.toml")
    assert "did you mean 'digits'?" in error_line("search", "--task", "digit")
    assert "expected digits, refshapes" in error_line("search", "--task", "av-digits")
    write_task(tmp_path)
    line = error_line("search", "--task", "task.toml", "--data", "nowhere")
    assert line == "error: received --data nowhere, expected a folder"


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished search of good data in ``tmp_path``."""
    from tiny_tasks import CONFIG

    import bmnas

    monkeypatch.chdir(tmp_path)
    path = write_task(tmp_path)
    bmnas.search(bmnas.load_task(path), run="runs/mine", config=CONFIG)
    return tmp_path


TRAIN = ("train", "--genotype", "runs/mine/genotype.json", "--device", "cpu")


def test_test_data_is_checked_before_a_training_begins(searched: Path, error_line: Command) -> None:
    held = spoilt("a", (2, 1), np.nan)
    held["label"][5] = 8
    write_task(searched, held=held)
    line = error_line(*TRAIN)
    assert "labels out of range: received 8 for sample 5 (test), expected 0 to 2" in line
    assert "modality a: NaN or infinite value in row 2, of sample 2 (test)" in line
    assert not (searched / "runs" / "mine" / "network.safetensors").exists()


def test_data_that_went_away_before_the_training(searched: Path, error_line: Command) -> None:
    (searched / "mine.npz").unlink()
    assert "mine.npz: no such file: give --data DIR" in error_line(*TRAIN)


def test_a_task_that_was_built_in_python(searched: Path, error_line: Command) -> None:
    config = searched / "runs" / "mine" / "config.json"
    recorded = json.loads(config.read_text())
    recorded["task"]["source"] = {}
    config.write_text(json.dumps(recorded))
    line = error_line(*TRAIN)
    assert "was built in Python and has no name to load it by: give it with --task" in line


def test_a_real_process_says_the_same(tmp_path: Path) -> None:
    write_task(tmp_path, held=spoilt("a", (3, 1), np.nan))
    done = subprocess.run(
        [sys.executable, "-m", "bmnas", "search", "--task", "task.toml", *FAST],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: task mine: modality a: NaN or infinite value in row 3, of sample 3 (train)\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.npz", "task.toml"]
