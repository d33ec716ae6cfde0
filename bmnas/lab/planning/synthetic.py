"""Stand-ins for a feature cache that is not there yet: synthetic features, bytes on its disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import torch

from bmnas.features.samples import FeatureSamples
from bmnas.features.transfer import room
from bmnas.lab.planning.workload import Workload
from bmnas.tasks.kinds import task_kind

_BYTES = 1 << 27  # of features: more than a processor caches, and made in a moment
_MOST = 1 << 28  # bytes on the disk
_BLOCK = 1 << 22
_READS = 512


class SyntheticFeatures:
    """Random features of a workload's shapes, ``bytes`` of them.

    They are ``resident`` on ``device`` where the search's would find room there.
    """

    def __init__(self, workload: Workload, device: torch.device) -> None:
        count = workload.train + workload.validation
        self._workload = workload
        self._rows = max(2, min(count, _BYTES // workload.sample_bytes))
        self.bytes = self._rows * workload.sample_bytes
        self.resident = workload.cache_bytes <= room(device)
        length, dtype = workload.search.length, getattr(torch, workload.search.cache_dtype)
        place = device if self.resident else "cpu"
        self._arrays = {
            name: torch.randn(self._rows, length, channels, dtype=dtype, device=place)
            for name, channels in workload.channels.items()
        }

    def samples(self, count: int) -> FeatureSamples:
        """Return ``count`` labelled samples, as many as asked for: rows come again."""
        kind = task_kind(self._workload.kind)
        labels = kind.synthetic(count, self._workload.classes).astype(kind.dtype)
        rows = dict.fromkeys(self._workload.rows, torch.arange(count) % self._rows)
        return FeatureSamples(tuple(self._arrays), self._arrays, rows, torch.from_numpy(labels))


def disk_speed(folder: Path, size: int, row: int) -> tuple[float, float]:
    """Return bytes a second of writing ``size`` bytes, and of reading rows that are not in memory.

    Writes 256 MiB at most, and reads rows of ``row`` bytes in random order.
    """
    path, size = folder / "disk.bin", min(size, _MOST)
    block = Random(0).randbytes(min(_BLOCK, size))
    started = time.perf_counter()
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK):
            file.write(block[: size - start])
        file.flush()
        os.fsync(file.fileno())
    write = size / (time.perf_counter() - started)
    row = min(row, size)
    rows = list(range(size // row))
    Random(0).shuffle(rows)
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        total = sum(len(os.pread(file.fileno(), row, n * row)) for n in rows[:_READS])
        return write, total / (time.perf_counter() - started)
