"""What a loop has spent: seconds by stage and peak memory, over all its lives.

Nothing here waits for a device. A stage that ends where the loop synchronises anyway (a mean loss,
a score) holds the device's work too; that is how the loops of this package are cut.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

#: The stage that torch.compile's time goes to, whichever stage asked for it.
COMPILE = "compile"


class CostMeter:
    """Seconds by stage and peak memory, which go on counting where a checkpoint left them."""

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
        self._running = (name, time.perf_counter(), _COMPILATION.seconds)
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
            compiling = _COMPILATION.seconds - compiled
            found[COMPILE] += compiling
            elapsed = time.perf_counter() - started
            found[name] = found.get(name, 0.0) + elapsed - compiling
        return found

    @property
    def peak_memory(self) -> dict[str, int]:
        """Peak memory so far in bytes, the largest of all lives, see ``peak_memory``."""
        now = peak_memory()
        return {key: max(now.get(key, 0), self._peak.get(key, 0)) for key in {**self._peak, **now}}

    def to_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"seconds": self.seconds, "peak_memory": self.peak_memory}

    def resume(self, earlier: Mapping[str, Any]) -> None:
        """Add what ``to_dict`` returned in an earlier life.

        Raises LookupError, TypeError, ValueError or AttributeError for anything else.
        """
        for name, seconds in earlier["seconds"].items():
            self._seconds[name] = self._seconds.get(name, 0.0) + float(seconds)
        for name, size in earlier["peak_memory"].items():
            self._peak[name] = max(self._peak.get(name, 0), int(size))


def peak_memory() -> dict[str, int]:
    """Return the peak memory of this process in bytes.

    ``resident_bytes`` is what lay in memory, pages of mapped files included; ``device_bytes``,
    where CUDA is in use, what torch's tensors took on the device that had most.
    """
    found = {"resident_bytes": _resident()}
    if torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found["device_bytes"] = max(torch.cuda.max_memory_allocated(device) for device in devices)
    return found


def watch_compilation() -> None:
    """From now on know the seconds that torch.compile spends compiling; called where it is used."""
    # Torch keeps the hooks here and has no public name for them. They also see what is compiled
    # late, such as the backward pass at its first run.
    from torch._dynamo.callback import callback_handler

    # torch._dynamo.reset() may have dropped them.
    if _COMPILATION.begin not in callback_handler.start_callbacks:
        callback_handler.register_start_callback(_COMPILATION.begin)
        callback_handler.register_end_callback(_COMPILATION.end)


class _Compilation:
    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def begin(self, _: object) -> None:
        self._started = time.perf_counter()

    def end(self, _: object) -> None:
        self.seconds += time.perf_counter() - self._started


_COMPILATION = _Compilation()


def _resident() -> int:
    # Not getrusage on Linux: a process that was forked from a large one begins with its peak.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
