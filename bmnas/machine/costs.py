"""What things cost: seconds by stage, memory, latency, parameters, and the hardware (spec 9)."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

#: The stage that torch.compile's time goes to, whichever stage asked for it.
COMPILE = "compile"


@dataclass(frozen=True)
class Latency:
    """Median and 99th percentile of one call in milliseconds, over ``repeats`` calls."""

    median_ms: float
    p99_ms: float
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready plain data."""
        return asdict(self)


class CostMeter:
    """Seconds by stage and peak memory of a loop; a resumed loop adds to the earlier figures.

    Nothing here waits for a device: stages end where the loop synchronises anyway, at a mean loss
    or a score, so that they include the device's work.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._peak: dict[str, int] = {}
        self._running: tuple[str, float, float] | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of this block to ``name``, those of torch.compile in it apart.

        Stages follow each other; one inside another raises RuntimeError.
        """
        if self._running is not None:
            raise RuntimeError(f"stage {name} begins inside stage {self._running[0]}")
        self._running = (name, time.perf_counter(), _compile_seconds())
        try:
            yield
        finally:
            self._seconds = self.seconds
            self._running = None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, those of the stage that is running included."""
        found = {COMPILE: 0.0, **self._seconds}
        if self._running is not None:
            name, started, compiled = self._running
            elapsed, compiling = time.perf_counter() - started, _compile_seconds() - compiled
            found[COMPILE] += compiling
            found[name] = found.get(name, 0.0) + elapsed - compiling
        return found

    @property
    def peak_memory(self) -> dict[str, int]:
        """Peak memory in bytes, before and after a resume, see ``peak_memory``."""
        now = peak_memory()
        return {key: max(now.get(key, 0), self._peak.get(key, 0)) for key in {**self._peak, **now}}

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"seconds": self.seconds, "peak_memory": self.peak_memory}

    def resume(self, earlier: Mapping[str, Any]) -> None:
        """Add what ``to_dict`` returned before the loop was stopped; raises for anything else."""
        for name, seconds in earlier["seconds"].items():
            self._seconds[name] = self._seconds.get(name, 0.0) + float(seconds)
        for name, size in earlier["peak_memory"].items():
            self._peak[name] = max(self._peak.get(name, 0), int(size))


def measure_latency(
    function: Callable[[], Any], *, repeats: int = 100, warm_up: int = 10, budget: float = 5.0
) -> Latency:
    """Time ``function`` call by call, after ``warm_up`` calls that do not count.

    Stops early once ``budget`` seconds are spent, and warming up after a fifth of them. The
    function must wait for its own result: on an accelerator it has to synchronise.
    """
    end = time.perf_counter() + budget / 5
    for _ in range(warm_up):
        function()
        if time.perf_counter() > end:
            break
    times = []
    end = time.perf_counter() + budget
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
        if time.perf_counter() > end:
            break
    median, p99 = np.percentile(times, (50, 99))
    return Latency(1e3 * float(median), 1e3 * float(p99), len(times))


def peak_memory() -> dict[str, int]:
    """Return the peak memory of this process in bytes.

    ``resident_bytes`` is what lay in memory, pages of mapped files included; ``device_bytes``,
    where CUDA is in use, what torch's tensors took on the device that had most.
    """
    # Not getrusage on Linux: a process that was forked from a large one begins with its peak.
    peak = proc_entry("self/status", "VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    resident = int(peak.split()[0]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"resident_bytes": unit * resident}
    if torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found["device_bytes"] = max(torch.cuda.max_memory_allocated(device) for device in devices)
    return found


def count_parameters(module: nn.Module) -> int:
    """Return the number of weights of a module, buffers left out."""
    return sum(p.numel() for p in module.parameters())


def hardware(device: torch.device | None = None) -> dict[str, Any]:
    """Return processor, cores, threads and accelerator of this machine."""
    name = proc_entry("cpuinfo", "model name") or platform.processor() or platform.machine()
    found = {"processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device is not None and device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, bmnas, the libraries that results depend on, and ``more``."""
    found = {"python": platform.python_version()}
    for name in ("bmnas", "torch", "numpy", "scikit-learn", "safetensors", *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # Run from a checkout that is not installed: there is no version to report.
            found[name] = "not installed"
    return found


def proc_entry(file: str, *names: str) -> str:
    """Return what Linux's ``/proc/<file>`` says under the first of ``names``; "" elsewhere."""
    path = Path("/proc") / file
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""


def _compile_seconds() -> float:
    """Return what torch.compile has taken in this process, backward passes included."""
    # Torch has no public function for it. Without the module, nothing was compiled.
    utils = sys.modules.get("torch._dynamo.utils")
    return 0.0 if utils is None else float(utils.calculate_time_spent()["total_wall_time"])
