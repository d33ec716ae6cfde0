"""Processes that do the jobs of a sweep, found by the file of their order, or none of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bmnas.cli.export import export_run
from bmnas.lab.engines import JobRecord, Told, Workers
from bmnas.lab.job import Order, do_order


def in_this_process(orders: Sequence[Order], workers: Workers, told: Told) -> None:
    """Do ``orders`` one after the other, as an engine does, without the seconds of a start each."""
    for order in orders:
        do_order(order, export_run)
        told(JobRecord(order["job"]["name"], state="done", attempts=1))


def kill_worker(name: str, begun: Path, seconds: float = 280.0) -> threading.Thread:
    """Kill, in the background, the process of job ``name`` once the file ``begun`` is there.

    Whoever calls this joins the thread: it ends when the process is killed, or after ``seconds``.
    """

    def wait_and_kill() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for pid in _processes(f"/{name}.json") if begun.exists() else []:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


def _processes(ending: str) -> list[int]:
    """Return the processes of this user whose last argument has this ending."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            continue  # it has ended, or is another user's
        if words[-1].endswith(ending.encode()) and b"bmnas.cli.workers" in words:
            found.append(int(path.parent.name))
    return found
