"""How jobs are done: processes side by side, on this machine or wherever an attempt is made."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bmnas.lab.jobs.job import Order
from bmnas.machine.files import write_text


@dataclass(frozen=True)
class Result:
    """How a job ended: done; failed, so that the user must help; lost with its process."""

    name: str
    state: Literal["done", "failed", "lost"]
    error: str | None = None
    attempts: int = 0


@dataclass(frozen=True)
class Workers:
    """Processes that do orders: ``count`` at a time, each order again ``retries`` times when lost.

    ``command`` starts one; the name of its order's file is added. It ends when its standard input
    is closed, with status 2 and one line on standard error where the user must help. ``scratch`` is
    a folder for such files, on a cluster where all machines see it.
    """

    command: tuple[str, ...]
    count: int
    retries: int
    scratch: Path


#: Has the orders done and calls back for each that has ended.
Engine = Callable[[Sequence[Order], Workers, Callable[[Result], None]], None]

#: Does an order once, at one of the places 0, 1, … below the number of workers.
Attempt = Callable[[Order, int], Result]


def run_local(orders: Sequence[Order], workers: Workers, told: Callable[[Result], None]) -> None:
    """Do ``orders`` on this machine; GPUs go round, a processor's cores are divided."""

    def attempt(order: Order, place: int) -> Result:
        return run_process(order, workers, _environment(order, place, workers.count))

    run_orders(orders, workers, told, attempt)


def run_orders(
    orders: Sequence[Order], workers: Workers, told: Callable[[Result], None], attempt: Attempt
) -> None:
    """Do ``orders`` by ``attempt``, again where one is lost; ``told`` is called in this thread."""
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(workers.count):
        places.put(place)

    def one(order: Order) -> Result:
        place = places.get()
        try:
            for number in range(1, workers.retries + 2):
                result = dataclasses.replace(attempt(order, place), attempts=number)
                if result.state != "lost":
                    break
            return result
        finally:
            places.put(place)

    pool = ThreadPoolExecutor(workers.count)
    try:
        for future in as_completed([pool.submit(one, order) for order in orders]):
            told(future.result())
    finally:
        # After Ctrl-C no new ones are started.
        pool.shutdown(wait=False, cancel_futures=True)


def run_process(order: Order, workers: Workers, environment: Mapping[str, str]) -> Result:
    """Do ``order`` in a process that ends when this one does."""
    name = str(order["name"])
    path = workers.scratch / f"{name.strip('.').replace('/', '-')}.json"
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
        said = (process.stderr.read().strip().splitlines() or [""])[-1][:1000]
        status = process.wait()
    if status == 0:
        return Result(name, "done")
    if status == 2:
        return Result(name, "failed", said)
    if status == -signal.SIGINT:
        # Ctrl-C reaches a process together with this one, or a little earlier.
        raise KeyboardInterrupt
    if status < 0:
        return Result(name, "lost", f"killed by {signal.Signals(-status).name}")
    return Result(name, "lost", f"ended with status {status}" + (f": {said}" if said else ""))


def _environment(order: Order, place: int, workers: int) -> dict[str, str]:
    import torch

    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    gpus = torch.cuda.device_count()
    if gpus > 1 and order["device"] in ("auto", "cuda"):
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = seen[place % gpus]
    return environment
