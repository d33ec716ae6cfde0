"""Real processes, killed at random moments, end as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_tasks import write_tiny_task

KILLS = 10


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bmnas", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(folder: Path, *words: str) -> float:
    """Run a command to its end and return the seconds it took."""
    started = time.perf_counter()
    process = start(folder, *words)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return time.perf_counter() - started


def kill_often(folder: Path, seconds: float, *words: str) -> None:
    """Start a command again and again and kill it with SIGKILL, then let it end.

    Each life is long enough to import torch and short enough that most do not reach the end; a
    life that does ends in an answer at once, and counts no kill.
    """
    draw = random.Random(0)
    kills = 0
    for _ in range(3 * KILLS):
        process = start(folder, *words)
        try:
            process.wait(draw.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        assert process.returncode in (0, -signal.SIGKILL), errors
        if kills == KILLS:
            break
    assert kills >= KILLS, "the command ended too soon to be killed ten times"
    finish(folder, *words)


@pytest.mark.slow
def test_a_search_and_a_training_survive_being_killed(tmp_path: Path) -> None:
    write_tiny_task(tmp_path)
    base = ("search", "--task", "task.toml", "--epochs", "200", "--channels", "8")
    seconds = finish(tmp_path, *base, "--run", "whole")
    kill_often(tmp_path, seconds, *base, "--run", "killed", "--resume")
    for name in ("history.jsonl", "genotype.json"):
        whole, killed = ((tmp_path / run / name).read_text() for run in ("whole", "killed"))
        assert killed == whole.replace('"run": "whole"', '"run": "killed"')
    assert not list((tmp_path / "killed").glob(".*.part"))

    train = ("train", "--epochs", "60")
    seconds = finish(tmp_path, *train, "--genotype", "whole/genotype.json")
    again = (*train, "--genotype", "killed/genotype.json", "--resume")
    kill_often(tmp_path, seconds, *again)
    whole, killed = ((tmp_path / run / "train.jsonl").read_bytes() for run in ("whole", "killed"))
    assert killed == whole
    whole, killed = (
        (tmp_path / run / "network.safetensors").read_bytes() for run in ("whole", "killed")
    )
    # The run's name in the genotype's provenance is all that differs.
    assert killed.replace(b'\\"run\\": \\"killed\\"', b'\\"run\\": \\"whole\\"')[8:] == whole[8:]
