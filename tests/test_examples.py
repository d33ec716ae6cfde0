from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bmnas_serve.manifest import load, verify_files

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_from_python_runs_as_its_docstring_says(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, EXAMPLES / "from_python.py", folder, "1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    scores, difference, served = done.stdout.splitlines()
    assert scores.startswith("validation 0.")
    assert difference.startswith("differs from torch by ")
    assert served.startswith("served [")
    manifest = load(folder / "bundle")
    verify_files(manifest, folder / "bundle")
    assert [spec.name for spec in manifest.inputs] == ["left", "right"]
    assert f"test {manifest.scores['test']['score']:.3f} when trained" in scores
