"""Where jobs are done: in processes side by side on this machine, or on a cluster by Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bmnas.machine.errors import one_line
from bmnas.machine.files import write_text

if TYPE_CHECKING:
    # At its top it imports torch, for which Ray's own processes have no use.
    from bmnas.lab.job import Order


@dataclass(frozen=True)
class JobRecord:
    """How a job stands: failed by a mistake of the user's, lost when its process was.

    ``settings`` are what tells it from the others; scores are fractions, ``seconds`` those of the
    search.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    state: Literal["waiting", "done", "failed", "lost"] = "waiting"
    attempts: int = 0
    error: str | None = None
    metric: str | None = None
    validation: float | None = None
    test: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Workers:
    """Processes that do orders: ``count`` at a time, each order again ``retries`` times when lost.

    ``command`` starts one; the name of its order's file is added. It ends when its standard input
    is closed, and with status 2 and one line on standard error for a mistake of the user's.
    """

    command: tuple[str, ...]
    count: int
    retries: int


#: Is called with how a job ended.
Told = Callable[[JobRecord], None]

#: Has the orders done and calls back for each that has ended.
Engine = Callable[[Sequence["Order"], Workers, Told], None]

#: Does an order once; the number says which of the workers does it.
Attempt = Callable[["Order", int], JobRecord]


def run_local(orders: Sequence[Order], workers: Workers, told: Told) -> None:
    """Do ``orders`` on this machine; GPUs go round, a processor's cores are divided."""

    def attempt(order: Order, place: int) -> JobRecord:
        return run_process(order, workers, _environment(order, place, workers.count))

    run_orders(orders, workers, told, attempt)


def run_on_ray(orders: Sequence[Order], workers: Workers, told: Told) -> None:
    """Do ``orders`` on the cluster of ``RAY_ADDRESS``, or on Ray on this machine.

    Each takes one CPU, and one GPU where the cluster has any. Every machine must see the jobs'
    folder and have this package. Raises ModuleNotFoundError without Ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # On a cluster its machines say what they have.
    own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers.count}
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **own)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) and orders[0]["device"] != "cpu" else 0

    def work(order: Order) -> JobRecord:
        # Ray's workers have the driver's sys.path, their children only what is said here.
        path = os.pathsep.join(filter(None, sys.path))
        return run_process(order, workers, {**os.environ, "PYTHONPATH": path})

    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(work)

    def attempt(order: Order, place: int) -> JobRecord:
        try:
            result: JobRecord = ray.get(remote.remote(order))
        except ray.exceptions.RayError as error:
            # Not the process alone but Ray's own worker, or its machine.
            return JobRecord(order["job"]["name"], state="lost", error=one_line(error, 200))
        return result

    try:
        run_orders(orders, workers, told, attempt)
    finally:
        ray.shutdown()


def run_orders(orders: Sequence[Order], workers: Workers, told: Told, attempt: Attempt) -> None:
    """Do ``orders`` by ``attempt``, again where one is lost; ``told`` is called in this thread."""
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(workers.count):
        places.put(place)

    def one(order: Order) -> JobRecord:
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


def run_process(order: Order, workers: Workers, environment: Mapping[str, str]) -> JobRecord:
    """Do ``order`` in a process that ends when this one does."""
    name: str = order["job"]["name"]
    scratch = Path(order["folder"]) / ".scratch"
    path = scratch / f"{name.strip('.').replace('/', '-')}.json"
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
        return JobRecord(name, state="done")
    if status == 2:
        return JobRecord(name, state="failed", error=said)
    if status == -signal.SIGINT:
        # Ctrl-C reaches a process together with this one, or a little earlier.
        raise KeyboardInterrupt
    if status < 0:
        how = f"killed by {signal.Signals(-status).name}"
    else:
        how = f"ended with status {status}" + (f": {said}" if said else "")
    return JobRecord(name, state="lost", error=how)


def _environment(order: Order, place: int, workers: int) -> dict[str, str]:
    import torch

    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    gpus = torch.cuda.device_count()
    if gpus > 1 and order["device"] in ("auto", "cuda"):
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = seen[place % gpus]
    return environment
