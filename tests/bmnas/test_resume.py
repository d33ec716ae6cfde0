"""Real processes that are killed end, when they go on, as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_tasks
from killed_searches import PAIRS, SEARCH

SUPPORT = Path(tiny_tasks.__file__).parent


def printed_by(script: str, folder: Path) -> Any:
    """Run a script of the support folder with warnings as errors; return the JSON it printed."""
    paths = os.pathsep.join([str(SUPPORT), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "error", SUPPORT / script, folder]
    printed = subprocess.run(command, env=environment, capture_output=True)
    assert printed.returncode == 0, printed.stderr.decode()
    return json.loads(printed.stdout)


@pytest.mark.slow
def test_a_search_and_a_training_survive_being_killed(tmp_path: Path) -> None:
    assert printed_by("killed_commands.py", tmp_path) == {"search": True, "train": True}


def test_mmnas_survives_being_killed_at_every_stage(tmp_path: Path) -> None:
    found = printed_by("killed_searches.py", tmp_path)
    assert found == dict.fromkeys((*SEARCH, *PAIRS), True)
