"""How a model runs fastest on this machine: threads and rows at a time, by a short measurement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bmnas_serve.runner import usable_cpus
from bmnas_serve.session import Session

#: More threads are taken where they are at least that many times as fast: a thread that gains
#: little is one that the rest of the server, and other models, lack.
_WORTH = 1.3
_SECONDS = 0.15
#: Several always: what else runs on the machine may stop one of them for long.
_WARM_UP, _FEWEST, _RUNS = 3, 5, 200


#: A run of several requests is told to the thread that makes it, and back: seconds, about.
_HANDOVER = 0.00015
#: Of the rows at a time that are nearly as fast as can be the fewest are taken, so that requests
#: are read and answered meanwhile: within this factor.
_NEARLY = 1.05
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_LONGEST = 0.1


@dataclass(frozen=True)
class Tuning:
    """``threads`` and rows at a time, and the median ``seconds`` of a run by threads and rows."""

    threads: int
    rows: int
    by_threads: Mapping[int, float]
    by_rows: Mapping[int, float]

    def __str__(self) -> str:
        many = "thread" if self.threads == 1 else "threads"
        return (
            f"{self.threads} {many} ({_milliseconds(self.by_threads)}), up to {self.rows} rows at a"
            f" time ({_milliseconds(self.by_rows)})"
        )


def _milliseconds(seconds: Mapping[int, float]) -> str:
    return ", ".join(f"{count}: {1000 * found:.2f} ms" for count, found in seconds.items())


def open_fastest(open_session: Callable[[int], Session]) -> tuple[Session, Tuning]:
    """Return the session that ``open_session`` opens with the number of threads found fastest.

    Powers of two are tried up to the CPUs that this process may use; then how many rows at a time
    are best, which the session's ``batch_rows`` is set to. Raises InferenceError when the model
    does not run on zeros.
    """
    seconds: dict[int, float] = {}
    best: tuple[int, Session] | None = None
    for count in _counts(usable_cpus()):
        session = open_session(count)
        seconds[count] = _measure(session, 1)
        if best is None or seconds[best[0]] >= _WORTH * seconds[count]:
            best = count, session
    assert best is not None
    threads, session = best
    by_rows = dict(_by_rows(session, seconds[threads]))
    session.batch_rows = _best_rows(by_rows)
    return session, Tuning(threads, session.batch_rows, seconds, by_rows)


def _by_rows(session: Session, first: float) -> Iterator[tuple[int, float]]:
    seconds = first
    for rows in _ROWS:
        # Twice the rows take about twice the time.
        if rows > 1 and (not session.joins or 2 * seconds > _LONGEST):
            return
        seconds = first if rows == 1 else _measure(session, rows)
        yield rows, seconds


def _best_rows(seconds: Mapping[int, float]) -> int:
    """Return the fewest rows at a time that are nearly as fast as any number of them."""
    by_row = {rows: (found + _HANDOVER) / rows for rows, found in seconds.items()}
    return min(rows for rows, found in by_row.items() if found <= _NEARLY * min(by_row.values()))


def _counts(cpus: int) -> Iterator[int]:
    count = 1
    while count < cpus:
        yield count
        count *= 2
    yield cpus


def _measure(session: Session, rows: int) -> float:
    """Return the median seconds of a run on rows of zeros."""
    sample = {
        spec.name: np.zeros([rows if axis == -1 else axis for axis in spec.shape], spec.dtype)
        for spec in session.inputs
    }
    for _ in range(_WARM_UP):
        session.run(sample)
    runs: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(runs) < _FEWEST or (len(runs) < _RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        session.run(sample)
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)
