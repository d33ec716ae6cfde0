from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_tasks import write_tiny_task
from workers import in_this_process, kill_worker

SWEEP = ("sweep", "--task", "task.toml", "--preset", "tiny-preset.toml", "--run", "sweep")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def test_a_sweep_outlives_a_killed_worker_and_a_failing_trial(here: Path) -> None:
    # One of them diverges, which is the user's to mend.
    words = (*SWEEP, "--set", "search.max_lr=1e-3,1e30", "--json")
    killer = kill_worker("max_lr-0.001", here / "sweep" / "max_lr-0.001" / "config.json")
    printed = bmnas_command(*words)
    killer.join()
    assert printed.status == 1
    good, bad = json.loads(printed.out)["trials"]
    assert (good["name"], good["state"], good["attempts"]) == ("max_lr-0.001", "done", 2)
    assert (bad["name"], bad["state"], bad["attempts"]) == ("max_lr-1e+30", "failed", 1)
    assert "the loss is" in bad["error"]
    assert printed.err == f"note: {bad['name']}: failed: {bad['error']}\n"
    run = here / "sweep" / good["name"]
    assert (
        json.loads((run / "metrics.json").read_text())["search"]["validation"]
        == (good["validation"])
    )
    # An ordinary run folder with backbones of its own, which were trained once.
    (shared,) = (here / "sweep" / ".backbones").iterdir()
    for name in ("m0.safetensors", "m1.safetensors"):
        assert (run / "backbones" / name).samefile(shared / name)
    assert json.loads((run / "config.json").read_text())["backbones"]["folder"] is None
    recorded = json.loads((here / "sweep" / "sweep.json").read_text())
    assert recorded["trials"] == [good, bad]

    assert "holds a sweep already; go on with --resume" in one_line_error(bmnas_command(*words))
    other = bmnas_command(*words[:-1], "--resume", "--preset", "quick")
    assert "max_lr-0.001: holds a run with unimodal." in one_line_error(other)
    # Done by hand meanwhile: nothing is left but to tell.
    (here / "sweep" / bad["name"] / "genotype.json").write_bytes(
        (run / "genotype.json").read_bytes()
    )
    again = bmnas_command(*words, "--resume")
    assert again.status == 0
    assert [t["attempts"] for t in json.loads(again.out)["trials"]] == [2, 1]
    again = bmnas_command(*words[:-1], "--resume")
    assert "max_lr-0.001" in again.out
    (here / "sweep" / "sweep.json").write_text('{"format": "bmnas.sweep/1"}')
    message = one_line_error(bmnas_command(*words, "--resume"))
    assert "sweep.json: " in message
    assert "received 'bmnas.sweep/1', expected" in message
    assert "Next: bmnas compare sweep/*/" in again.err


def test_ctrl_c_ends_a_sweep_at_once(here: Path) -> None:
    command = [sys.executable, "-m", "bmnas", *SWEEP, "--set", "seed=0", "--set"]
    command.append("search.epochs=100000")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    begun, end = here / "sweep" / "seed-0_epochs-100000" / "history.jsonl", time.monotonic() + 120
    while not begun.exists() and time.monotonic() < end:
        time.sleep(0.01)
    # As a terminal does: to all processes.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "error: stopped; pretrain, search and train go on with --resume\n"


def test_a_worker_that_is_always_lost_is_given_up(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    printed = bmnas_command(*SWEEP, "--set", "seed=0", "--retries", "1", "--json")
    assert printed.status == 1
    (trial,) = json.loads(printed.out)["trials"]
    assert trial["state"] == "lost"
    assert trial["error"] == "its backbones: ended with status 1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "0"], "--workers: received 0, expected 1 or more"),
        (["--retries", "-1"], "--retries: received -1, expected 0 or more"),
        (["--set", "search.cells=0"], "search.cells: received 0, expected at least 1"),
        (["--set", "task=digit"], "received task 'digit', expected digits"),
        (["nothing.toml"], "nothing.toml: cannot be read: No such file"),
    ],
)
def test_mistakes(here: Path, words: list[str], message: str) -> None:
    assert message in one_line_error(bmnas_command(*SWEEP, *words))
    assert not (here / "sweep").exists()


def test_orders_go_to_the_engine_that_is_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bmnas.lab.engines.run_on_ray", in_this_process)
    printed = bmnas_command(*SWEEP, "--set", "seed=0", "--engine", "ray", "--json")
    assert printed.status == 0, printed.err
    assert [trial["state"] for trial in json.loads(printed.out)["trials"]] == ["done"]
    assert (here / "sweep" / "seed-0" / "genotype.json").is_file()


def test_without_ray_one_line_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = one_line_error(bmnas_command(*SWEEP, "--engine", "ray"))
    assert line == (
        "this needs the package ray, which is not installed: run pip install 'bmnas[sweep]'"
    )
