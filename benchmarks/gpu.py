"""Correctness and speed on an accelerator, as one JSON file, in less than eight minutes.

    python -m benchmarks.gpu --out benchmarks/results/<date>-<device>.json

Every part runs in a process of its own with a limit of its own, and the file is written after each:
what is too slow or fails is told in its place, and costs no other part. Correctness comes first,
and a piece that is wrong ends the run with status 1: then its speed is of no interest.
``--tiny --device cpu`` shows on any machine that everything runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bmnas
from benchmarks import gpu_checks, gpu_search, gpu_speed
from benchmarks.gpu_report import Report, Setting
from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import read_json, write_json


@dataclass(frozen=True)
class Part:
    """A part of the run, and the seconds that it may take at most."""

    run: Callable[[Setting, Report], None]
    limit: float


#: In the order in which they run: what matters most first.
PARTS = {
    "correctness": Part(gpu_checks.correctness, 180),
    "search, cold": Part(gpu_search.whole, 150),
    "search, warm": Part(gpu_search.whole, 90),
    "step": Part(gpu_speed.steps, 120),
    "latency": Part(gpu_speed.latency, 60),
    "epoch, features copied": Part(gpu_search.copied, 60),
    "CUDA graphs": Part(gpu_speed.cuda_graphs, 90),
}


def main() -> None:
    """Run all parts, or the one that a process of its own was started for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that it runs")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="measure torch.compile too (default: unless --tiny)",
    )
    parser.add_argument("--budget", type=float, default=460, help="seconds for all parts together")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    compiled = not options.tiny if options.compile is None else options.compile
    setting = Setting(bmnas.Runtime.choose(options.device, compile=False), options.tiny, compiled)
    if options.part is not None:
        PARTS[options.part].run(setting, Report(options.out))
        return
    report = measure(setting, options.budget, options.out)
    print(json.dumps(report, indent=2))
    if report["failures"]:
        sys.exit("; ".join(report["failures"]))


def measure(setting: Setting, budget: float, out: Path) -> dict[str, Any]:
    """Run the parts within ``budget`` seconds; return the report, which ``out`` holds too."""
    started, found = time.monotonic(), {}
    failures: list[str] = []
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(setting.runtime.device),
        "versions": {**versions(), "cuda": torch.version.cuda},
        "case": "tiny" if setting.tiny else "BM-NAS, NTU configuration",
        "parts": found,
        "failures": failures,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, part in PARTS.items():
            left = budget - (time.monotonic() - started)
            result = in_own_process(name, setting, min(part.limit, left), Path(folder))
            found[name] = result
            if "error" in result:
                failures.append(f"{name}: {result['error']}")
            wrong = gpu_checks.failed(result.get("checks", {}))
            failures.extend(f"not equal: {check}" for check in wrong)
            write_json(out, report)
            if wrong:
                break
    return report


def in_own_process(name: str, setting: Setting, limit: float, folder: Path) -> dict[str, Any]:
    """Return what a part found in ``limit`` seconds, and how it ended where it did not end well.

    Compiled code goes to ``folder``, which is empty at first: the first search finds none that
    suits it, and the second one all.
    """
    if limit <= 0:
        return {"left_out": "no time was left"}
    path = folder / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(path)]
    command += ["--device", str(setting.runtime.device), *(["--tiny"] if setting.tiny else [])]
    command.append("--compile" if setting.compiled else "--no-compile")
    # Correctness compiles some of the same code, which must not warm the first search.
    caches = folder / ("search" if name.startswith("search") else "others")
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    started = time.monotonic()
    ended: dict[str, Any] = {}
    try:
        done = subprocess.run(
            command, env=environment, timeout=limit, capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            ended["error"] = lines[-1] if lines else f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        ended["stopped"] = f"after {limit:.0f} s"
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return {**found, **ended, "wall_seconds": time.monotonic() - started}


if __name__ == "__main__":
    main()
