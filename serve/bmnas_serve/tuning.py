"""How many threads a model runs fastest with, by a short measurement on this machine."""

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
_WARM_UP, _RUNS = 3, 200


@dataclass(frozen=True)
class Threads:
    """``chosen`` threads, and the median ``seconds`` of a run of one sample by how many it had."""

    chosen: int
    seconds: Mapping[int, float]

    def __str__(self) -> str:
        found = ", ".join(f"{count}: {1000 * s:.2f} ms" for count, s in self.seconds.items())
        return f"{self.chosen} {'thread' if self.chosen == 1 else 'threads'} ({found})"


def open_fastest(open_session: Callable[[int], Session]) -> tuple[Session, Threads]:
    """Return the session that ``open_session`` opens with the number of threads found fastest.

    Powers of two are tried up to the CPUs that this process may use. Raises InferenceError when
    the model does not run on a sample of zeros.
    """
    seconds: dict[int, float] = {}
    best: tuple[int, Session] | None = None
    for count in _counts(usable_cpus()):
        session = open_session(count)
        seconds[count] = _measure(session)
        if best is None or seconds[best[0]] >= _WORTH * seconds[count]:
            best = count, session
    assert best is not None
    chosen, session = best
    return session, Threads(chosen, seconds)


def _counts(cpus: int) -> Iterator[int]:
    count = 1
    while count < cpus:
        yield count
        count *= 2
    yield cpus


def _measure(session: Session) -> float:
    """Return the median seconds of a run of one sample of zeros."""
    sample = {
        spec.name: np.zeros([max(axis, 1) for axis in spec.shape], spec.dtype)
        for spec in session.inputs
    }
    for _ in range(_WARM_UP):
        session.run(sample)
    runs: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not runs or (len(runs) < _RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        session.run(sample)
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)
