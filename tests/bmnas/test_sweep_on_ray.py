"""Three runs on Ray, one of whose processes is killed. Needs the extra ``sweep``."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import write_tiny_preset
from tiny_tasks import write_tiny_task

from bmnas.lab.jobs.attempts import attempts


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'bmnas[sweep]'"
)
def test_a_sweep_on_ray_outlives_a_killed_worker(tmp_path: Path) -> None:
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    command = [
        *(sys.executable, "-m", "bmnas", "sweep", "--task", "task.toml"),
        *("--preset", "tiny-preset.toml", "--set", "search.channels=4,6,8", "--run", "sweep"),
        *("--engine", "ray", "--workers", "2", "--json"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    killed = kill_one(tmp_path / "sweep" / ".attempts", process)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    trials = json.loads(out)["trials"]
    assert len(trials) == 3
    assert {trial["state"] for trial in trials} == {"done"}
    assert {trial["name"]: trial["attempts"] for trial in trials if trial["attempts"] > 1} == {
        killed: 2
    }
    for trial in trials:
        assert (tmp_path / "sweep" / trial["name"] / "genotype.json").is_file()


def kill_one(folder: Path, process: subprocess.Popen[str]) -> str:
    """Kill the worker of the first trial that is seen at work and return the trial's name."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        for path in folder.glob("channels-*.jsonl"):
            found = attempts(path)
            if found and "error" not in found[0]:
                assert found[0]["pid"] != process.pid
                os.kill(found[0]["pid"], signal.SIGKILL)
                return path.stem
        time.sleep(0.01)
    raise AssertionError("no trial was seen at work")
