"""Two runs on Ray, one of whose processes is killed. Needs the extra ``sweep``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import write_tiny_preset
from tiny_tasks import write_tiny_task
from workers import kill_worker


@pytest.mark.slow
def test_a_sweep_on_ray_outlives_a_killed_process(tmp_path: Path) -> None:
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    command = [
        # Whatever this project or Ray's driver side warns of is an error; Ray's own processes
        # are started by Ray, with options of its own.
        *(sys.executable, "-W", "error", "-m", "bmnas", "sweep", "--task", "task.toml"),
        *("--preset", "tiny-preset.toml", "--set", "search.channels=4,6", "--run", "sweep"),
        *("--engine", "ray", "--workers", "2", "--json"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    killer = kill_worker("channels-6", tmp_path / "sweep" / "channels-6" / "config.json")
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    killer.join()
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    assert {trial["name"]: (trial["state"], trial["attempts"]) for trial in trials} == {
        "channels-4": ("done", 1),
        "channels-6": ("done", 2),
    }
    for trial in trials:
        assert (tmp_path / "sweep" / trial["name"] / "genotype.json").is_file()
