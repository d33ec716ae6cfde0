"""Real processes, killed at random moments, end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_tasks
from killed_searches import PLACES
from tiny_tasks import CONFIG, write_tiny_task

KILLS = 5
SEARCH = ("search", "--task", "task.toml", "--preset", "all.toml")


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


def kill_often(
    folder: Path, seconds: float, words: tuple[str, ...], ended: Callable[[], None]
) -> None:
    """Kill a command of about ``seconds`` with SIGKILL five times, starting it again each time.

    ``ended`` is called whenever it reached its end: it looks at what is there and clears it, so
    that the command starts from nothing again until it has been killed five times.
    """
    draw = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = start(folder, *words)
        try:
            # Earlier it does little but import; what is left to do later, those resumed come to.
            _, errors = process.communicate(timeout=draw.uniform(0.4, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
            kills += 1
        if process.returncode == 0:
            ended()
        else:
            assert process.returncode == -signal.SIGKILL, errors.decode()
    finish(folder, *words)
    ended()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder with the run ``whole`` of a search with all stages, and the seconds it took."""
    folder = tmp_path_factory.mktemp("searched")
    write_tiny_task(folder, samples=150)
    config = CONFIG.override("unimodal", folds=2, epochs=8)
    config = config.override("search", rerank=2, rivals=True, epochs=12, candidate_epochs=1)
    config = config.override("train", unimodal_logits=True)
    (folder / "all.toml").write_text(config.to_toml())
    return folder, finish(folder, *SEARCH, "--run", "whole")


@pytest.mark.slow
def test_a_search_survives_being_killed(searched: tuple[Path, float]) -> None:
    folder, seconds = searched
    whole, killed = folder / "whole", folder / "killed"

    def ended() -> None:
        assert (killed / "history.jsonl").read_bytes() == (whole / "history.jsonl").read_bytes()
        expected = (
            (whole / "genotype.json").read_text().replace('"run": "whole"', '"run": "killed"')
        )
        assert (killed / "genotype.json").read_text() == expected
        assert not list(killed.rglob(".*.part"))
        shutil.rmtree(killed)

    kill_often(folder, seconds, (*SEARCH, "--run", "killed", "--resume"), ended)


@pytest.mark.slow
def test_a_training_survives_being_killed(searched: tuple[Path, float]) -> None:
    folder, _ = searched
    words = ("train", "--epochs", "20", "--genotype", "whole/genotype.json")
    seconds = finish(folder, *words, "--run", "trained")
    whole, killed = folder / "trained", folder / "killed"

    def ended() -> None:
        for name in ("train.jsonl", "network.safetensors"):
            assert (killed / name).read_bytes() == (whole / name).read_bytes()
        assert not list(killed.rglob(".*.part"))
        shutil.rmtree(killed)

    kill_often(folder, seconds, (*words, "--run", "killed", "--resume"), ended)


def test_a_search_of_mmnas_survives_being_killed_at_every_stage(tmp_path: Path) -> None:
    script = Path(tiny_tasks.__file__).with_name("killed_searches.py")
    paths = os.pathsep.join([str(script.parent), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, script, tmp_path]
    printed = subprocess.run(command, env=environment, capture_output=True)
    assert printed.returncode == 0, printed.stderr.decode()
    found = json.loads(printed.stdout)
    assert found == dict.fromkeys(PLACES, True)
