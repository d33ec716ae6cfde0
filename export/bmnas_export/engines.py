"""TensorRT engines, made in a process of their own from an ONNX file of the bundle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
from bmnas_serve.manifest import TargetSpec

from bmnas.machine import runtime
from bmnas.machine.errors import UserError
from bmnas.machine.files import atomic_path, read_json, sha256_file, sha256_json, write_json
from bmnas_export import engine_builder
from bmnas_export.errors import ExportError, first_line
from bmnas_export.precision import producer, widened

#: The smallest, the usual and the largest batch that an engine is made for.
BATCHES = (1, 8, 64)

_FLAGS = ("STRONGLY_TYPED", "no TF32")
_MACHINE = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]


def write_engine(package: str, out: Path, source: Path, described: TargetSpec | None) -> TargetSpec:
    """Write the engine ``out`` with ``package`` from ``source``.

    ``described`` says what ``source`` is, None for ``model.onnx``. ``tensorrt`` tunes for the GPU
    at hand: its engines and measurements are kept in ``cache_folder``. Raises ExportError when the
    package refuses the graph or crashes.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(source)
        dtypes = widened(model)
        onnx.save(model, Path(folder, "model.onnx"))
        build = _cached if package == "tensorrt" else _built
        report = build(package, Path(folder, "model.onnx"), out)
    return TargetSpec(
        out.name,
        "float32" if described is None else described.precision,
        {**producer(), package: report["version"]},
        dtypes if described is None else {**described.dtypes, **dtypes},
        {**report, "verified": f"{source.name}, which it is built from; the engine was not run"},
    )


def cache_folder() -> Path:
    """Return where engines are kept, beside the user's compiled code."""
    return runtime.cache_folder() / "engines"


def _built(package: str, model: Path, out: Path, timings: Path | None = None) -> dict[str, Any]:
    """Build ``out`` and return the report of it."""
    started = time.perf_counter()
    report = _ask(
        package,
        do="build",
        model=str(model),
        engine=str(out),
        batches=BATCHES,
        timings=None if timings is None else str(timings),
    )
    seconds = round(time.perf_counter() - started, 2)
    return {**report, "batches": list(BATCHES), "flags": list(_FLAGS), "seconds": seconds}


def _cached(package: str, model: Path, out: Path) -> dict[str, Any]:
    """Return the report of ``out``, copied from the cache where that holds an engine for it.

    The key is all that an engine depends on.
    """
    machine = {"version": _ask(package, do="version")["version"], "gpu": _gpu()}
    key = {**machine, "model": sha256_file(model), "batches": BATCHES, "flags": _FLAGS}
    stored = cache_folder() / f"{sha256_json(key)}.engine"
    note = stored.with_suffix(".json")
    report = _report(note, sha256_file(stored)) if stored.is_file() else None
    # A library that was replaced under the same version may refuse it.
    if report is not None and _ask(package, do="check", engine=str(stored))["usable"]:
        shutil.copyfile(stored, out)
        return {**report, "cached": True}
    timings, used = cache_folder() / f"{sha256_json(machine)}.timings", model.with_name("timings")
    if timings.is_file():
        shutil.copyfile(timings, used)
    report = _built(package, model, out, used)
    for source, place in ((used, timings), (out, stored)):
        with atomic_path(place) as aside:
            shutil.copyfile(source, aside)
    write_json(note, {"key": key, "engine": sha256_file(out), "report": report})
    return report


def _report(note: Path, engine: str) -> dict[str, Any] | None:
    """Return the report in the cache's ``note`` of the engine with a SHA-256; None if damaged."""
    try:
        found = read_json(note)
        report: dict[str, Any] = {**found["report"]}
        return report if found["engine"] == engine else None
    except (UserError, KeyError, TypeError):
        return None  # the engine is built anew


def _gpu() -> str:
    """Return name, compute capability and driver of the GPUs."""
    try:
        done = subprocess.run(_MACHINE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ExportError(
            f"tensorrt builds on a machine with an NVIDIA GPU, and nvidia-smi finds none:"
            f" {first_line(error)}; tensorrt-rtx builds without one"
        ) from error
    return done.stdout.strip()


def _ask(package: str, **request: Any) -> dict[str, Any]:
    """Return what ``engine_builder`` answers in a process of its own, which may crash."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "answer.json")
        done = subprocess.run(
            # -P: the folder of the program holds modules of common names.
            [sys.executable, "-P", engine_builder.__file__, place],
            input=json.dumps({"package": package, **request}),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            name = signal.Signals(-done.returncode).name if done.returncode < 0 else "an exception"
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ExportError(f"{package} ended with {name}: {said}")
        found: dict[str, Any] = read_json(place)
    if "error" in found:
        raise ExportError(f"{package} {found['version']}: {found['error']}")
    return found
