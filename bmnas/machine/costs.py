"""What things cost: parameters, latency, and the hardware it was measured on (spec section 9)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Latency:
    """Median and 99th percentile of one call in milliseconds, over ``repeats`` calls."""

    median_ms: float
    p99_ms: float
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready plain data."""
        return {"median_ms": self.median_ms, "p99_ms": self.p99_ms, "repeats": self.repeats}


def measure_latency(
    function: Callable[[], Any], *, repeats: int = 100, warm_up: int = 10, budget: float = 5.0
) -> Latency:
    """Time ``function`` call by call, after ``warm_up`` calls that do not count.

    Stops early once ``budget`` seconds are spent. The function must wait for its own result: on
    an accelerator it has to synchronise.
    """
    for _ in range(warm_up):
        function()
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


def count_parameters(module: nn.Module) -> int:
    """Return the number of weights of a module, buffers left out."""
    return sum(p.numel() for p in module.parameters())


def hardware(device: torch.device | None = None) -> dict[str, Any]:
    """Return processor, cores, threads and accelerator of this machine."""
    found = {
        "processor": cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device is not None and device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python, bmnas and the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("bmnas", "torch", "numpy", "scikit-learn", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # Run from a checkout that is not installed: there is no version to report.
            found[name] = "not installed"
    return found


def cpuinfo(*names: str) -> str:
    """Return what Linux says of the processor under the first of ``names``; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""
