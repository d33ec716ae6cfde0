"""How fast a disk is, for as many bytes as there will be."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bmnas.machine.files import atomic_path

_BLOCK = 1 << 22  # bytes of one call
_FLUSH = 1 << 26  # bytes between two waits for the disk
_MOST = 1 << 31  # bytes that are written
_BUDGET = 3.0  # seconds of writing
_READS = 512


@dataclass(frozen=True)
class Disk:
    """Bytes a second of writing, and of reading rows in random order that are not in memory.

    ``free`` is how many bytes there is room for.
    """

    write: float
    read: float
    free: int


def measure_disk(folder: Path, size: int, row: int) -> Disk:
    """Return the speed of the disk of ``folder`` for ``size`` bytes in rows of ``row`` bytes.

    Writes two gigabytes at most, for some seconds, and removes them. Many discs are fast at first
    and slow for what follows: where that is not all of ``size``, the speed is that of the later
    half of the time.
    """
    path = folder / "disk.bin"
    free = shutil.disk_usage(folder).free
    with atomic_path(path) as aside:
        write = _write_speed(aside, size, max(row, min(_MOST, free // 2)))
    read = _read_speed(path, min(row, path.stat().st_size))
    path.unlink()
    return Disk(write, read, free)


def _write_speed(path: Path, size: int, most: int) -> float:
    most = min(size, most)
    block = Random(0).randbytes(min(_BLOCK, most))
    marks = [(0.0, 0)]  # seconds, and the bytes that were safe by then
    started, written = time.perf_counter(), 0
    with path.open("wb", buffering=0) as file:
        while written < most and marks[-1][0] < _BUDGET:
            end = min(most, written + _FLUSH)
            while written < end:
                written += file.write(block[: end - written])
            os.fsync(file.fileno())
            marks.append((time.perf_counter() - started, written))
    if written == size:
        return written / marks[-1][0]
    # The first mark of the later half may be the last but one.
    half = next(mark for mark in reversed(marks[:-1]) if mark[0] <= marks[-1][0] / 2)
    return (written - half[1]) / (marks[-1][0] - half[0])


def _read_speed(path: Path, row: int) -> float:
    rows = list(range(path.stat().st_size // row))
    Random(0).shuffle(rows)
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        total = sum(len(os.pread(file.fileno(), row, n * row)) for n in rows[:_READS])
        return total / (time.perf_counter() - started)
