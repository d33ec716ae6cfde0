"""The default engine: worker processes on this machine, one for each job."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from bmnas.lab.sweep.engine import Engine, Result
from bmnas.lab.sweep.job import Job
from bmnas.machine.errors import one_line
from bmnas.machine.files import write_text


def run_local(jobs: Sequence[Job], engine: Engine, told: Callable[[Result], None]) -> None:
    """Do ``jobs`` in processes of their own; GPUs go round, a processor's cores are divided."""
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(engine.workers):
        places.put(place)

    def one(job: Job) -> Result:
        place = places.get()
        try:
            return _attempts(job, engine, _environment(job, place, engine.workers))
        finally:
            places.put(place)

    with ThreadPoolExecutor(engine.workers) as pool:
        running = [pool.submit(one, job) for job in jobs]
        try:
            for future in as_completed(running):
                told(future.result())
        except BaseException:
            # Ctrl-C reaches the workers too; no new ones are started.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempts(job: Job, engine: Engine, environment: dict[str, str]) -> Result:
    path = engine.scratch / f"{job['name']}.json"
    write_text(path, json.dumps(job))
    command = [sys.executable, "-m", "bmnas.lab.sweep", str(path)]
    for _ in range(1 + engine.retries):
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            return Result(job["name"], "done")
        said = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode == 2:
            return Result(job["name"], "failed", one_line(said))
    return Result(job["name"], "lost", _ending(done.returncode, said))


def _ending(status: int, said: str) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}" + (f": {one_line(said, 200)}" if said else "")


def _environment(job: Job, place: int, workers: int) -> dict[str, str]:
    import torch

    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    gpus = torch.cuda.device_count()
    if gpus > 1 and job["device"] in ("auto", "cuda"):
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = seen[place % gpus]
    return environment
