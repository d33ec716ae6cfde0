"""Made-up pooled features, mapped from files as those of a feature cache are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bmnas.features.dtype import file_dtype, from_file, to_file
from bmnas.features.samples import FeatureSamples
from bmnas.features.transfer import moved, room
from bmnas.lab.planning.workload import Workload
from bmnas.machine.files import atomic_path
from bmnas.tasks.kinds import task_kind

_BYTES = 1 << 27  # more than a processor caches, and written in a moment
_CHUNK = 64  # rows


class MadeUpFeatures:
    """Random features of a workload's shapes, ``bytes`` of them in files in ``folder``.

    They are ``resident`` on ``device`` where the search's would find room there.
    """

    def __init__(self, workload: Workload, folder: Path, device: torch.device) -> None:
        samples = workload.train + workload.validation
        self._workload = workload
        self._rows = max(2, min(samples, _BYTES // workload.sample_bytes))
        self.bytes = self._rows * workload.sample_bytes
        files = {name: folder / f"{name}.bin" for name in workload.channels}
        for name, path in files.items():
            self._write(path, workload.channels[name])
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
        with atomic_path(path) as aside, aside.open("wb") as file:
            for start in range(0, self._rows, _CHUNK):
                file.write(chunk[: self._rows - start].tobytes())
