from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from bmnas.cli.show import compare
from bmnas.machine.errors import UserError


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(compare)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = []
    settings = [("bmnas", 0, 0.9), ("bmnas", 1, 0.95), ("random", 0, 0.875)]
    for strategy, seed, score in settings:
        folder = tmp_path / f"{strategy}-{seed}"
        folder.mkdir()
        config = {"task": {"name": "digits"}, "strategy": strategy, "seed": seed}
        metrics = {"metric": "accuracy", "test": {"score": score}, "seconds": {"search": 12.5}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.json").write_text(json.dumps(metrics))
        made.append(folder)
    return made


def test_the_table_has_a_line_for_each_configuration(runs: list[Path]) -> None:
    result = run(*runs)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["digits,", "accuracy"]
    (bmnas,) = [line for line in lines if line[:1] == ["bmnas"]]
    assert bmnas[1:6] == ["0,", "1", "0.9250", "±", "0.0354"]
    (other,) = [line for line in lines if line[:1] == ["random"]]
    # Measures that no run has are no columns.
    assert other == ["random", "0", "0.8750", "12.5"]


def test_tasks_are_never_in_one_table(runs: list[Path]) -> None:
    config = json.loads((runs[2] / "config.json").read_text())
    config["task"]["name"] = "av-digits"
    (runs[2] / "config.json").write_text(json.dumps(config))
    titles = [x for x in run(*runs).stdout.splitlines() if x.strip().endswith(", accuracy")]
    assert [title.strip() for title in titles] == ["digits, accuracy", "av-digits, accuracy"]


def test_json_has_full_precision(runs: list[Path]) -> None:
    shown = json.loads(run(*runs, "--json").stdout)
    first, second = shown["rows"]
    assert first["seeds"] == [0, 1]
    assert first["score"]["mean"] == pytest.approx(0.925)
    assert second["fusion_parameters"] is None


@pytest.mark.parametrize("suffix", ["svg", "png", "html", "md"])
def test_each_format_is_written(runs: list[Path], suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"out.{suffix}"
    result = run(*runs, "--out", out)
    assert result.exit_code == 0
    assert result.stderr == f"wrote {out}\n"
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "html": b"<!DOCTYPE", "md": b"### digits"}
    assert out.read_bytes().startswith(starts[suffix])


def test_wrong_input_is_one_line(runs: list[Path], tmp_path: Path) -> None:
    suffix = run(*runs, "--out", tmp_path / "a.pdf")
    assert isinstance(suffix.exception, UserError)
    assert "expected one of .svg, .png, .html, .md" in str(suffix.exception)
    missing = run(tmp_path / "nothing")
    assert isinstance(missing.exception, UserError)
    assert "nothing: expected a run folder" in str(missing.exception)
    twice = run(runs[0], runs[0])
    assert isinstance(twice.exception, UserError)
    assert "expected each once" in str(twice.exception)
