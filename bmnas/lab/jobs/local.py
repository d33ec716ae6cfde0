"""The default engine: processes on this machine, one for each job."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from bmnas.lab.jobs.job import Order, Result, Workers
from bmnas.machine.errors import one_line
from bmnas.machine.files import write_text


def run_local(orders: Sequence[Order], workers: Workers, told: Callable[[Result], None]) -> None:
    """Do ``orders`` in processes of their own; GPUs go round, a processor's cores are divided."""
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(workers.count):
        places.put(place)

    def one(order: Order) -> Result:
        place = places.get()
        try:
            environment = _environment(order, place, workers.count)
            for _ in range(1 + workers.retries):
                result = attempt(order, workers, environment)
                if result.state != "lost":
                    break
            return result
        finally:
            places.put(place)

    with ThreadPoolExecutor(workers.count) as pool:
        running = [pool.submit(one, order) for order in orders]
        try:
            for future in as_completed(running):
                told(future.result())
        except BaseException:
            # Ctrl-C reaches the workers too; no new ones are started.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def attempt(order: Order, workers: Workers, environment: Mapping[str, str]) -> Result:
    """Do ``order`` in one process, which ends when this one does."""
    path = workers.scratch / f"{order['name'].replace('/', '-')}.json"
    write_text(path, json.dumps(order))
    with subprocess.Popen(
        [*workers.command, str(path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stderr is not None
        said = (process.stderr.read().strip().splitlines() or [""])[-1]
        status = process.wait()
    if status == 0:
        return Result(order["name"], "done")
    if status == 2:
        return Result(order["name"], "failed", one_line(said))
    return Result(order["name"], "lost", _ending(status, said))


def _ending(status: int, said: str) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}" + (f": {one_line(said, 200)}" if said else "")


def _environment(order: Order, place: int, workers: int) -> dict[str, str]:
    import torch

    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    gpus = torch.cuda.device_count()
    if gpus > 1 and order["device"] in ("auto", "cuda"):
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = seen[place % gpus]
    return environment
