from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from bmnas.cli.show import show
from bmnas.machine.errors import UserError
from bmnas.report.text import genotype_text
from bmnas.spaces.cells.known import known_genotype

GENOTYPE = known_genotype("aoa", ("image.1", "audio.1"), channels=8, length=4)


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(show)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    GENOTYPE.save(path / "genotype.json")
    line = {"epoch": 1, "train_loss": 1.0, "validation_score": 0.5, "best": True}
    (path / "history.jsonl").write_text(json.dumps(line) + "\n")
    latency = {"hardware": "[red]x", "torch": {"batch_1": {"median_ms": 1638.2}}}
    metrics = {"metric": "accuracy", "test": {"score": 0.9625}, "latency": latency}
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "config.json").write_text(json.dumps({"task": {"name": "digits"}, "seed": 4}))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    data = {"name": "digits", "inputs": [], "outputs": [], "genotype": GENOTYPE.to_dict()}
    (path / "manifest.json").write_text(json.dumps(data))
    return path


def test_a_genotype_is_printed_as_text(folder: Path) -> None:
    result = run(folder / "genotype.json")
    assert result.exit_code == 0
    assert result.stdout == genotype_text(GENOTYPE) + "\n"


def test_a_run_prints_its_configuration_architecture_and_measures(folder: Path) -> None:
    result = run(folder)
    assert result.stdout.startswith("task: digits · seed: 4\n")
    assert genotype_text(GENOTYPE) in result.stdout
    assert "0.9625" in result.stdout
    assert "[red]x" in result.stdout
    assert "1,638" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_bundle_prints_its_contents(bundle: Path) -> None:
    result = run(bundle)
    assert genotype_text(GENOTYPE) in result.stdout
    assert "digits" in result.stdout


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
@pytest.mark.parametrize("subject", ["run", "run/genotype.json", "bundle"])
def test_each_subject_is_drawn_to_each_format(
    folder: Path, bundle: Path, subject: str, suffix: str
) -> None:
    out = folder.parent / f"picture.{suffix}"
    result = run(folder.parent / subject, "--out", out)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == f"wrote {out}\n"
    start = {"svg": b"<?xml", "png": b"\x89PNG", "html": b"<!DOCTYPE html>"}[suffix]
    assert out.read_bytes().startswith(start)


def test_json_is_one_object(folder: Path, bundle: Path) -> None:
    shown = json.loads(run(folder, "--json").stdout)
    assert (shown["kind"], shown["best_epoch"], shown["out"]) == ("run", 1, None)
    assert shown["genotype"] == GENOTYPE.to_dict()
    assert json.loads(run(bundle, "--json").stdout)["kind"] == "bundle"
    out = folder.parent / "a.svg"
    drawn = json.loads(run(folder / "genotype.json", "--json", "--out", out).stdout)
    assert (drawn["kind"], drawn["out"]) == ("genotype", str(out))


@pytest.mark.parametrize(
    ("subject", "out", "message"),
    [
        ("run", "a.jpg", r"received suffix '\.jpg', expected one of \.svg, \.png, \.html"),
        ("nothing", "a.svg", "nothing: does not exist; expected a genotype"),
        (".", "a.svg", "expected a run folder with one of config.json"),
        (
            "run/history.jsonl",
            "a.svg",
            r"history\.jsonl: expected the key 'format'",
        ),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    folder: Path, subject: str, out: str, message: str
) -> None:
    result = run(folder.parent / subject, "--out", folder.parent / out)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert "\n" not in str(result.exception)
    assert not (folder.parent / out).exists()


def test_a_bundle_without_genotype_has_no_picture(bundle: Path) -> None:
    (bundle / "manifest.json").write_text(json.dumps({"inputs": [], "outputs": []}))
    result = run(bundle, "--out", bundle.parent / "a.svg")
    assert "expected a genotype or history.jsonl to draw" in str(result.exception)


def test_text_needs_neither_matplotlib_nor_torch(folder: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from bmnas.cli.show import show\n"
        "show(pathlib.Path(sys.argv[1]))\n"
        "heavy = {'torch', 'matplotlib', 'sklearn', 'onnx'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
