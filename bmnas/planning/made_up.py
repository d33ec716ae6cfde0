"""Made-up pooled features, mapped from files as those of a feature cache are."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bmnas.files import atomic_path
from bmnas.planning.workload import Workload
from bmnas.samples import FeatureSamples

_BYTES = 1 << 27  # more than a processor caches, and written in a moment
_CHUNK = 64  # rows
_READS = 256  # of a file, in random order


class MadeUpFeatures:
    """Random features of a workload's shapes in ``folder``, and how fast its disc was.

    ``write_speed`` is that of new files, flushed; ``read_speed`` that of rows in random order which
    are not in memory. Both are bytes a second.
    """

    def __init__(self, workload: Workload, folder: Path) -> None:
        samples = workload.train + workload.validation
        self._workload = workload
        self._rows = max(2, min(samples, _BYTES // workload.sample_bytes))
        self.bytes = self._rows * workload.sample_bytes
        files = {name: folder / f"{name}.bin" for name in workload.channels}
        started = time.perf_counter()
        for name, path in files.items():
            self._write(path, workload.channels[name])
        self.write_speed = self.bytes / (time.perf_counter() - started)
        self.read_speed = self._read_speed(list(files.values()))
        # Copy on write, as the feature cache is mapped.
        self._arrays = {
            name: torch.from_numpy(np.memmap(path, np.float32, "c", shape=self._shape(name)))
            for name, path in files.items()
        }

    def samples(self, count: int) -> FeatureSamples:
        """Return ``count`` labelled samples, as many as asked for: rows come again."""
        classes, numbers = self._workload.classes, torch.arange(count)
        labels = numbers % classes
        if self._workload.kind == "multilabel":
            labels = ((numbers[:, None] + torch.arange(classes)) % 2).float()
        rows = dict.fromkeys(self._workload.rows, numbers % self._rows)
        return FeatureSamples(tuple(self._arrays), self._arrays, rows, labels)

    def _shape(self, name: str) -> tuple[int, int, int]:
        return self._rows, self._workload.search.length, self._workload.channels[name]

    def _write(self, path: Path, channels: int) -> None:
        row = (self._workload.search.length, channels)
        chunk = np.random.default_rng(0).standard_normal((_CHUNK, *row), np.float32)
        with atomic_path(path) as aside, aside.open("wb") as file:
            for start in range(0, self._rows, _CHUNK):
                file.write(chunk[: self._rows - start].tobytes())

    def _read_speed(self, files: Sequence[Path]) -> float:
        """Return the speed of reading rows, after the system was asked to forget them."""
        rng = np.random.default_rng(0)
        seconds, total = 0.0, 0
        for path in files:
            size = path.stat().st_size // self._rows
            with path.open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                started = time.perf_counter()
                for row in rng.permutation(self._rows)[:_READS].tolist():
                    total += len(os.pread(file.fileno(), size, row * size))
                seconds += time.perf_counter() - started
        return total / seconds
