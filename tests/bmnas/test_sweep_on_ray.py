"""Two orders on Ray, one of whose processes is killed. Needs the extra ``sweep``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import json, sys
from bmnas.lab.engines import Workers, run_on_ray
orders = [{"job": {"name": n}, "folder": sys.argv[1], "device": "cpu"} for n in ("kept", "killed")]
told = []
run_on_ray(orders, Workers((sys.executable, sys.argv[1] + "/worker.py"), 2, 1), told.append)
assert "torch" not in sys.modules
print(json.dumps({record.name: (record.state, record.attempts) for record in told}))
"""
WORKER = """
import os, signal, sys
from pathlib import Path
from bmnas.machine.files import read_json
order = read_json(Path(sys.argv[1]))
name, folder = order["job"]["name"], Path(order["folder"])
with open(folder / f"{name}.txt", "a") as file:
    file.write("begun\\n")
if name == "killed" and (folder / "killed.txt").read_text() == "begun\\n":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_orders_on_ray_outlive_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    # Whatever this project or Ray's driver side warns of is an error; Ray's own processes are
    # started by Ray, with options of its own.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER, tmp_path],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"kept": ["done", 1], "killed": ["done", 2]}
    begun = {path.stem: path.read_text().split() for path in tmp_path.glob("*.txt")}
    assert begun == {"kept": ["begun"], "killed": ["begun", "begun"]}
