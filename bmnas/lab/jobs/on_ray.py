"""The engine for clusters: Ray, which finds each process a machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from bmnas.lab.jobs.engine import Result, Workers, run_orders, run_process
from bmnas.lab.jobs.job import Order
from bmnas.machine.errors import one_line


def run_on_ray(orders: Sequence[Order], workers: Workers, told: Callable[[Result], None]) -> None:
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
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run)

    def attempt(order: Order, place: int) -> Result:
        try:
            result: Result = ray.get(remote.remote(order, workers))
        except ray.exceptions.RayError as error:
            # Not the process alone but Ray's own worker, or its machine.
            return Result(order["name"], "lost", one_line(error, 200))
        return result

    try:
        run_orders(orders, workers, told, attempt)
    finally:
        ray.shutdown()


def _run(order: Order, workers: Workers) -> Result:
    # Ray's workers have the driver's sys.path, their children only what is said here.
    path = os.pathsep.join(filter(None, sys.path))
    return run_process(order, workers, {**os.environ, "PYTHONPATH": path})
