from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_tasks import write_tiny_task

import bmnas
import bmnas.pipeline.train
from bmnas.machine.distributed import lock_folders
from bmnas.report.metrics import LatencyMetrics
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.mfas.genotype import Layer, MFASGenotype


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with task.toml, tiny-preset.toml and a finished search in runs/tiny."""
    folder = tmp_path_factory.mktemp("searched")
    task, preset = write_tiny_task(folder), write_tiny_preset(folder)
    words = ("search", "--task", task, "--preset", preset, "--run", folder / "runs" / "tiny")
    assert bmnas_command(*words).status == 0
    return folder


@pytest.fixture
def here(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, the current directory; latency takes too long here."""
    monkeypatch.setattr(bmnas.pipeline.train, "torch_latency", lambda *args: LatencyMetrics())
    folder = tmp_path / "here"
    shutil.copytree(searched, folder)
    config = folder / "runs" / "tiny" / "config.json"
    config.write_text(config.read_text().replace(str(searched), str(folder)))
    monkeypatch.chdir(folder)
    return folder


GENOTYPE = "runs/tiny/genotype.json"


def test_train_needs_nothing_but_the_genotype_and_is_quiet(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bmnas", "train", "--genotype", GENOTYPE],
        cwd=here,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"Next: bmnas export --genotype {GENOTYPE}\n"
    assert not set("\x1b\r") & set(done.stdout + done.stderr)
    assert "accuracy" in done.stdout
    trained = bmnas.load_network(here / "runs" / "tiny" / "network.safetensors")
    assert trained.genotype == Genotype.load(here / GENOTYPE)
    assert trained.task.name == "tiny"


def test_backbones_are_trained_where_the_preset_would_freeze_them(here: Path) -> None:
    config = here / "runs" / "tiny" / "config.json"
    frozen = json.loads(config.read_text())
    frozen["train"]["freeze_backbones"] = True
    config.write_text(json.dumps(frozen))
    words = ("train", "--genotype", GENOTYPE)

    def weights_of(run: str) -> dict[str, torch.Tensor]:
        network = bmnas.load_network(here / run / "network.safetensors").network
        return dict(network.backbones.state_dict())

    assert bmnas_command(*words, "--run", "frozen").status == 0
    assert bmnas_command(*words, "--run", "trained", "--train-backbones").status == 0
    kept, moved = weights_of("frozen"), weights_of("trained")
    assert any(not torch.equal(kept[name], moved[name]) for name in kept)
    recorded = json.loads((here / "trained" / "config.json").read_text())
    assert recorded["train"]["freeze_backbones"] is False


def test_options_go_before_what_the_search_recorded(here: Path) -> None:
    words = ("train", "--genotype", GENOTYPE, "--run", "other", "--epochs", "2", "--seed", "5")
    printed = bmnas_command(*words, "--freeze-backbones", "--json")
    assert (printed.status, printed.err) == (0, "")
    found = json.loads(printed.out)
    assert set(found) == {"run", "network", "metrics"}
    assert found["run"] == "other"
    config = json.loads((here / "other" / "config.json").read_text())
    assert (config["seed"], config["train"]["epochs"]) == (5, 2)
    assert config["train"]["freeze_backbones"] is True
    # Backbones and what is recorded of them stay those of the search.
    assert config["backbones"] == {
        "folder": str((here / "runs" / "tiny" / "backbones").resolve()),
        "seed": 0,
    }
    assert config["preset"].endswith("tiny-preset.toml")
    assert len((here / "other" / "train.jsonl").read_text().splitlines()) == 2
    assert not (here / "runs" / "tiny" / "network.safetensors").exists()


def test_another_preset_is_recorded(here: Path) -> None:
    (here / "mine.toml").write_text((here / "tiny-preset.toml").read_text())
    words = ("train", "--genotype", GENOTYPE, "--run", "other", "--preset", "mine.toml")
    assert bmnas_command(*words).status == 0
    assert json.loads((here / "other" / "config.json").read_text())["preset"] == "mine.toml"


def test_another_preset_changes_the_training_alone(here: Path) -> None:
    path = here / "runs" / "tiny" / "config.json"
    before = json.loads(path.read_text())
    text = re.sub(r"epochs = \d+", "epochs = 3", (here / "tiny-preset.toml").read_text())
    (here / "mine.toml").write_text(text)
    assert bmnas_command("train", "--genotype", GENOTYPE, "--preset", "mine.toml").status == 0
    after = json.loads(path.read_text())
    assert after["train"]["epochs"] == 3
    assert {key: after[key] for key in ("search", "unimodal")} == {
        key: before[key] for key in ("search", "unimodal")
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--genotype", "no.json"], "no.json: no such file; make it with: bmnas search"),
        (["--genotype", "runs"], "runs/genotype.json: no such file; make it with: bmnas search"),
        (["--genotype", "empty.json"], "empty.json: not a JSON file: Expecting value"),
        (["--genotype", "task.toml"], "task.toml: not a JSON file"),
        (["--genotype", "alone.json"], "is not in a run folder, which would say what its task is"),
        (["--genotype", GENOTYPE, "--epochs", "0"], "--epochs: received 0, expected at least 1"),
        (["--genotype", GENOTYPE, "--batch-size", "1"], "--batch-size: received 1, expected at"),
        (["--genotype", GENOTYPE, "--threshold", "1"], "threshold: received 1.0, expected betwe"),
        (
            ["--fusion", "gmu", "--unimodal-logits"],
            "--unimodal-logits: gmu takes none, expected Cells",
        ),
        (
            ["--genotype", "mfas.json", "--unimodal-logits"],
            "--unimodal-logits: mfas.json takes none",
        ),
        (["--genotype", GENOTYPE, "--preset", "nope"], "received preset 'nope', expected one of"),
        (["--genotype", GENOTYPE, "--device", "tpu"], "received device 'tpu', expected one of"),
        (["--genotype", GENOTYPE, "--task", "nope"], "task 'nope', expected digits, refshapes"),
        (["--genotype", GENOTYPE, "--task", "digits"], "the genotype reads m0.1, task digits has"),
        (["--genotype", GENOTYPE, "--seed", "-1"], "--seed: received -1, expected 0 or more"),
        (
            ["--genotype", "runs/tiny", "--task", "nope"],
            "task 'nope', expected digits, refshapes",
        ),
        (["--genotype", "runs/tiny", "--seed", "1"], "holds a run with seed 0, received 1"),
        (["--genotype", GENOTYPE, "--seed", "1"], "holds a run with seed 0, received 1"),
        (
            ["--genotype", GENOTYPE, "--run", "alone.json"],
            "alone.json: cannot be written: File ",
        ),
        (["--genotype", GENOTYPE, "--resume", "--overwrite"], "--resume and --overwrite, expect"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_the_run_as_it_was(
    here: Path, words: list[str], message: str
) -> None:
    (here / "empty.json").write_text("")
    shutil.copy(here / GENOTYPE, here / "alone.json")
    MFASGenotype(("m0.1", "m1.1"), 2, 4, (Layer(("m0.1", "m1.1"), "relu"),)).save(
        here / "mfas.json"
    )
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert message in one_line_error(bmnas_command("train", *words))
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before


def test_data_that_is_gone_is_one_line(here: Path) -> None:
    (here / "tiny.npz").unlink()
    assert "tiny.npz" in one_line_error(bmnas_command("train", "--genotype", GENOTYPE))
    assert not (here / "runs" / "tiny" / "train.jsonl").exists()


def test_a_configuration_that_was_damaged_is_one_line(here: Path) -> None:
    path = here / "runs" / "tiny" / "config.json"
    config = json.loads(path.read_text())
    for changes, message in [
        ({"search": 3}, "config.json: search: received 3, expected a table"),
        ({"train": {"epochs": "many"}}, "train.epochs: received 'many', expected an integer"),
        ({"task": {}}, "config.json: received no task, expected what `bmnas search` writes"),
        ({"backbones": [1]}, "config.json: backbones: received [1], expected what"),
        ({"backbones": {"seed": None}}, "config.json: backbones.seed: received null, expected"),
        ({"seed": "x"}, 'config.json: seed: received "x", expected what'),
    ]:
        path.write_text(json.dumps({**config, **changes}))
        assert message in one_line_error(bmnas_command("train", "--genotype", GENOTYPE))
    path.write_text(path.read_text()[:100])
    assert "config.json: not a JSON file" in one_line_error(
        bmnas_command("train", "--genotype", GENOTYPE)
    )


def test_a_training_is_refused_resumed_or_overwritten(here: Path) -> None:
    words = ("train", "--genotype", GENOTYPE)
    assert bmnas_command(*words).status == 0
    path = here / "runs" / "tiny" / "network.safetensors"
    before = path.stat().st_mtime_ns
    assert "there is a training already; go on with --resume" in one_line_error(
        bmnas_command(*words)
    )
    assert bmnas_command(*words, "--resume").status == 0
    assert path.stat().st_mtime_ns == before
    assert bmnas_command(*words, "--overwrite").status == 0
    assert path.stat().st_mtime_ns > before


def test_a_folder_in_use_is_one_line(here: Path) -> None:
    with lock_folders(here / "runs" / "tiny"):
        message = one_line_error(bmnas_command("train", "--genotype", GENOTYPE))
    assert message.startswith("runs/tiny: another bmnas process is at work there")
