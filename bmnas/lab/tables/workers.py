"""Batches trained by several processes, a thread each.

With one thread a batch's result does not depend on the number of processes, and two processes wait
for each other at no time: threads do so after every operation.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

import torch

from bmnas.lab.tables.training import Job, Trainer, Work
from bmnas.machine.errors import UserError

_trainer: Trainer | None = None  # of a worker process


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def trained(work: Work, jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    """Train ``jobs`` in ``workers`` processes and yield each one when its part is written.

    A single worker is this process. Raises UserError when a loss is no longer finite, and when a
    process was killed.
    """
    if workers == 1:
        with _one_thread():
            trainer = Trainer(work) if jobs else None
            for job in jobs:
                if trainer is not None:
                    trainer.write_part(job)
                yield job
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (work,)) as pool:
        running = {pool.submit(_train, job): job for job in jobs}
        try:
            for future in as_completed(running):
                future.result()
                yield running[future]
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; the same command goes "
                "on, and needs less with --workers 1"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(work: Work) -> None:
    global _trainer
    # Ctrl-C reaches workers as well: they end without a word. So they do when the parent is killed.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _trainer = Trainer(work)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _train(job: Job) -> None:
    if _trainer is None:
        raise RuntimeError("expected a process that _begin has prepared")
    _trainer.write_part(job)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
