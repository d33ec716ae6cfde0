from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import bmnas_export
import pytest
import typer
from bmnas_serve.manifest import load
from tiny_networks import tiny_network
from tiny_tasks import write_tiny_task
from typer.testing import CliRunner, Result

from bmnas.cli import main
from bmnas.cli.export import export
from bmnas.machine.distributed import lock_folders
from bmnas.machine.errors import UserError
from bmnas.spaces.cells.genotype import Genotype, Step
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.fusions.space import NO_FUSION, NamedFusion
from bmnas.tasks import load_task

METRICS = {"metric": "accuracy", "test": {"score": 0.5, "samples": 7}, "seconds": {"search": 1.5}}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run: the task's data in one folder, the network in another."""
    (tmp_path / "data").mkdir()
    task = load_task(write_tiny_task(tmp_path / "data"))
    trained = tiny_network(task)
    run = tmp_path / "run"
    run.mkdir()
    trained.genotype.save(run / "genotype.json")
    trained.save(run / "network.safetensors")
    (run / "metrics.json").write_text(json.dumps(METRICS))
    return run


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100"})


def message(result: Result) -> str:
    assert isinstance(result.exception, UserError), result.exception
    assert "\n" not in str(result.exception)
    assert result.stdout == ""
    return str(result.exception)


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note what would be exported, and end there."""
    calls: list[Any] = []

    def noted(*arguments: Any, **options: Any) -> None:
        calls.append((arguments, options))
        raise UserError("noted")

    monkeypatch.setattr(bmnas_export, "export_bundle", noted)
    return calls


def test_a_genotype_is_all_that_an_export_needs(
    run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = invoke("--genotype", run_folder / "genotype.json", "--target", "triton")
    assert result.exit_code == 0, result.exception
    manifest = load(run_folder / "bundle")
    measured = manifest.scores["exported"]
    assert manifest.scores == {
        "metric": "accuracy",
        "test": {"score": 0.5, "samples": 7},
        "exported": measured,
    }
    assert "m0 float32 (batch, 6, 3)" in result.stdout
    assert "logits float32 (batch, 4), probabilities float32 (batch, 4)" in result.stdout
    assert "of 42 in these batches are decided the same" in result.stdout
    assert "batch 64" in result.stdout
    assert re.findall(r"triton/\S* ", result.stdout) == ["triton/ "]  # the folder, not each file
    assert result.stderr == f"Next: bmnas serve {run_folder / 'bundle'}\n"
    # Nothing of the exporter's chatter, not even past Python's streams.
    assert capfd.readouterr() == ("", "")
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["latency"]["onnxruntime"] == manifest.latency["onnxruntime"]
    assert metrics["latency"]["onnxruntime_threads"] == manifest.latency["threads"]
    assert metrics["seconds"] == METRICS["seconds"]


def test_json_is_one_object_and_out_is_where_it_says(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "metrics.json").unlink()
    out = tmp_path / "elsewhere" / "bundle"
    # The folder of the run stands for its genotype.
    result = invoke("--genotype", run_folder, "--out", out, "--json", "--benchmark")
    assert result.exit_code == 0, result.exception
    shown = json.loads(result.stdout)
    timed = {run["target"] for run in shown["latency"]["benchmark"]["runs"]}
    assert timed == {"torch", "onnx"}
    assert shown["bundle"] == str(out)
    assert shown["parity"]["passed"]
    assert shown["files"]["model.onnx"] == (out / "model.onnx").stat().st_size
    assert result.stderr == ""
    assert load(out).scores.keys() == {"exported"}
    assert not (run_folder / "bundle").exists()
    assert not (run_folder / "metrics.json").exists()


def test_missing_weights_name_the_command_that_makes_them(tmp_path: Path) -> None:
    genotype = tmp_path / "my run" / "genotype.json"
    known_genotype("sum", ("m0.1", "m1.1"), channels=8, length=4).save(genotype)
    shown = message(invoke("--genotype", genotype))
    weights = genotype.parent / "network.safetensors"
    assert shown == f"{weights}: no such file; `bmnas train` writes it"


def test_a_genotype_that_is_none_is_named(run_folder: Path, tmp_path: Path) -> None:
    shown = message(invoke("--genotype", tmp_path / "absent.json"))
    assert shown.startswith(f"{tmp_path / 'absent.json'}: cannot be read: No such file")
    (run_folder / "genotype.json").write_text("[]")
    shown = message(invoke("--genotype", run_folder / "genotype.json"))
    assert shown.startswith(f"{run_folder / 'genotype.json'}: received [], expected an object")


def other(genotype: Genotype, change: str) -> Genotype:
    if change == "length":
        return dataclasses.replace(genotype, length=6)
    if change == "cells":
        again = dataclasses.replace(genotype.cells[0], inputs=("m0.1", "m1.1"))
        return dataclasses.replace(genotype, cells=(*genotype.cells, again))
    cell = dataclasses.replace(genotype.cells[0], steps=(Step("sum", ("x", "y")),))
    return dataclasses.replace(genotype, cells=(cell,))


@pytest.mark.parametrize("change", ["length", "cells", "steps"])
def test_weights_of_another_genotype_are_refused(run_folder: Path, change: str) -> None:
    path = run_folder / "other.json"
    other(Genotype.load(run_folder / "genotype.json"), change).save(path)
    shown = message(invoke("--genotype", path))
    assert f"trained for another genotype than {path}; give the weights" in shown
    assert shown.endswith(f"or make them with: bmnas train --genotype {path}")


def test_a_training_that_left_the_fusion_network_out_is_exported(
    run_folder: Path, no_export: list[Any]
) -> None:
    task = load_task(run_folder.parent / "data" / "task.toml")
    trained = tiny_network(task, NamedFusion(NO_FUSION, 6, 4), unimodal_logits=True)
    trained.save(run_folder / "network.safetensors")
    assert message(invoke("--genotype", run_folder / "genotype.json")) == "noted"
    ((exported, *_), _) = no_export[0]
    assert set(exported.network.modalities) == {"m0", "m1"}


def test_a_file_that_holds_no_network_is_one_line(run_folder: Path) -> None:
    weights = run_folder / "network.safetensors"
    weights.write_bytes(b"\x80\x04 pickled, perhaps")
    shown = message(invoke("--genotype", run_folder / "genotype.json", "--weights", weights))
    assert shown.startswith(f"{weights}: damaged, not a whole safetensors file")


def test_data_that_has_moved_is_found_with_task(run_folder: Path, no_export: list[Any]) -> None:
    data = run_folder.parent / "data"
    moved = run_folder.parent / "moved"
    data.rename(moved)
    arguments = ("--genotype", run_folder / "genotype.json")
    shown = message(invoke(*arguments))
    assert shown.endswith("(it was trained on this; --task and --data change it)")
    assert message(invoke(*arguments, "--task", moved / "task.toml")) == "noted"
    (_, task, out), options = no_export[0]
    assert task.name == "tiny"
    assert out == run_folder / "bundle"
    assert options["scores"] == {"metric": "accuracy", "test": {"score": 0.5, "samples": 7}}


def test_data_alone_is_joined_to_the_recorded_task(run_folder: Path, no_export: list[Any]) -> None:
    elsewhere = run_folder.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.move(run_folder.parent / "data" / "tiny.npz", elsewhere)
    arguments = ("--genotype", run_folder / "genotype.json", "--data", elsewhere)
    assert message(invoke(*arguments)) == "noted"
    assert len(no_export) == 1


def test_a_run_at_work_is_told_before_the_export(run_folder: Path, no_export: list[Any]) -> None:
    with lock_folders(run_folder):
        shown = message(invoke("--genotype", run_folder / "genotype.json"))
    assert shown.startswith(f"{run_folder}: another bmnas process is at work there")
    assert no_export == []


def test_another_task_is_refused(run_folder: Path) -> None:
    shown = message(invoke("--genotype", run_folder / "genotype.json", "--task", "digits"))
    assert "task digits: received modality 'm0', expected one of left, right" in shown
    assert not (run_folder / "bundle").exists()


def test_a_task_from_python_has_to_be_named_again(run_folder: Path) -> None:
    trained = tiny_network(load_task(run_folder.parent / "data" / "task.toml"))
    info = dataclasses.replace(trained.task, source={})
    dataclasses.replace(trained, task=info).save(run_folder / "network.safetensors")
    shown = message(invoke("--genotype", run_folder / "genotype.json"))
    assert (
        "the task was built in Python and has no name to load it by: give it with --task" in shown
    )


def test_metrics_that_are_no_object_are_named(run_folder: Path) -> None:
    (run_folder / "metrics.json").write_text("[1]")
    shown = message(invoke("--genotype", run_folder / "genotype.json"))
    assert shown == f"{run_folder / 'metrics.json'}: received [1], expected a table"


def test_networks_that_differ_end_with_status_1(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(*arguments: Any, **options: Any) -> None:
        raise bmnas_export.ParityError("onnxruntime and torch differ by more than 1e-05")

    monkeypatch.setattr(bmnas_export, "export_bundle", differ)
    result = invoke("--genotype", run_folder / "genotype.json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: onnxruntime and torch differ by more than 1e-05\n"
    assert "latency" not in json.loads((run_folder / "metrics.json").read_text())


def without_export_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "bmnas_export":
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime", "torch"])
def test_missing_packages_name_the_extra(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    without_export_modules(monkeypatch)
    for name in ("session", "runner"):
        monkeypatch.delitem(sys.modules, f"bmnas_serve.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    shown = message(invoke("--genotype", run_folder / "genotype.json"))
    assert shown == (
        f"exporting needs the package {package}, which is not installed: run"
        " pip install 'bmnas[export]'"
    )


def test_two_builds_of_onnxruntime_are_one_line(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_export_modules(monkeypatch)
    for name in ("session", "runner"):
        monkeypatch.delitem(sys.modules, f"bmnas_serve.{name}", raising=False)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: object())
    shown = message(invoke("--genotype", run_folder / "genotype.json"))
    assert "both onnxruntime and onnxruntime-gpu are installed" in shown


def test_an_unknown_target_lists_those_there_are(run_folder: Path) -> None:
    shown = message(invoke("--genotype", run_folder / "genotype.json", "--target", "onx"))
    assert shown.startswith("received target 'onx', expected one of onnx, onnx-fp16, onnx-int8,")
    assert shown.endswith("; did you mean 'onnx'?")


def test_the_program_ends_with_status_2_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bmnas", "export", "--genotype", str(tmp_path / "g.json")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {tmp_path / 'g.json'}: cannot be read")
    assert shown.err.count("\n") == 1


def test_help_ends_with_an_example() -> None:
    shown = invoke("--help")
    assert "Example: bmnas export --genotype runs/digits/genotype.json" in shown.stdout
