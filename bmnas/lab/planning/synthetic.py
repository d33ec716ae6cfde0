"""Synthetic pooled features, mapped from files as those of a feature cache are."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import numpy as np
import torch

from bmnas.features.dtype import file_dtype, from_file, to_file
from bmnas.features.samples import FeatureSamples
from bmnas.features.transfer import moved, room
from bmnas.lab.planning.workload import Workload
from bmnas.tasks.kinds import task_kind

_BYTES = 1 << 28  # more than a processor caches, and written in a moment
_CHUNK = 64  # rows
_READS = 512


class SyntheticFeatures:
    """Random features of a workload's shapes, ``bytes`` of them in files in ``folder``.

    They are mapped as those of the feature cache are, and ``resident`` on ``device`` where the
    search's would find room there. ``write`` and ``read`` are bytes a second of writing them, and
    of reading rows in random order that are not in memory.
    """

    def __init__(self, workload: Workload, folder: Path, device: torch.device) -> None:
        count = workload.train + workload.validation
        self._workload = workload
        self._rows = max(2, min(count, _BYTES // workload.sample_bytes))
        self.bytes = self._rows * workload.sample_bytes
        files = {name: folder / f"{name}.bin" for name in workload.channels}
        started = time.perf_counter()
        for name, path in files.items():
            self._write(path, workload.channels[name])
        self.write = self.bytes / (time.perf_counter() - started)
        row = workload.sample_bytes // len(files)
        self.read = _read_speed(max(files.values(), key=lambda path: path.stat().st_size), row)
        dtype = workload.search.cache_dtype
        # Copy on write, as the feature cache is mapped.
        self._arrays = {
            name: from_file(np.memmap(path, file_dtype(dtype), "c", shape=self._shape(name)), dtype)
            for name, path in files.items()
        }
        self.resident = workload.cache_bytes <= room(device)
        if self.resident:
            self._arrays = moved(self._arrays, device, None)

    def samples(self, count: int) -> FeatureSamples:
        """Return ``count`` labelled samples, as many as asked for: rows come again."""
        kind = task_kind(self._workload.kind)
        labels = kind.synthetic(count, self._workload.classes).astype(kind.dtype)
        rows = dict.fromkeys(self._workload.rows, torch.arange(count) % self._rows)
        return FeatureSamples(tuple(self._arrays), self._arrays, rows, torch.from_numpy(labels))

    def _shape(self, name: str) -> tuple[int, int, int]:
        return self._rows, self._workload.search.length, self._workload.channels[name]

    def _write(self, path: Path, channels: int) -> None:
        row = (self._workload.search.length, channels)
        random = np.random.default_rng(0).standard_normal((_CHUNK, *row), np.float32)
        chunk = to_file(torch.from_numpy(random), self._workload.search.cache_dtype, path.stem)
        with path.open("wb") as file:
            for start in range(0, self._rows, _CHUNK):
                file.write(chunk[: self._rows - start].tobytes())
            file.flush()
            os.fsync(file.fileno())


def _read_speed(path: Path, row: int) -> float:
    row = min(row, path.stat().st_size)
    rows = list(range(path.stat().st_size // row))
    Random(0).shuffle(rows)
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        total = sum(len(os.pread(file.fileno(), row, n * row)) for n in rows[:_READS])
        return total / (time.perf_counter() - started)
