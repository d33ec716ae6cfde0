"""What an engine is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bmnas.lab.sweep.job import Job

#: done; failed: the user must help; lost: its process ended, more often than it may.
State = Literal["done", "failed", "lost"]


@dataclass(frozen=True)
class Result:
    """How a job ended, with the error of one that was not done."""

    name: str
    state: State
    error: str | None = None


@dataclass(frozen=True)
class Engine:
    """How jobs are done: ``workers`` at a time, each again up to ``retries`` times when lost.

    ``scratch`` is a folder for the engine's own files, on a cluster where all machines see it.
    """

    workers: int
    retries: int
    scratch: Path


#: Does the jobs and calls back for each that has ended, from one thread at a time.
RunJobs = Callable[[Sequence[Job], Engine, Callable[[Result], None]], None]
