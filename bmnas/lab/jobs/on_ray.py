"""The engine for clusters: Ray Tune, which knows the machines and starts lost jobs again."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bmnas.lab.jobs.job import Order, Result, Workers
from bmnas.lab.jobs.local import attempt
from bmnas.machine.errors import one_line


def run_on_ray(orders: Sequence[Order], workers: Workers, told: Callable[[Result], None]) -> None:
    """Do ``orders`` as trials of Ray Tune, on the cluster of ``RAY_ADDRESS`` or on this machine.

    A trial takes one CPU, and one GPU where the cluster has any. Every machine must see the
    jobs' folder and have this package. Raises ModuleNotFoundError without Ray.
    """
    _be_quiet()
    import ray
    from ray import tune

    if not ray.is_initialized():
        # On a cluster its machines say what they have.
        own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers.count}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **own)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) and orders[0]["device"] != "cpu" else 0

    def trainable(config: dict[str, Any]) -> dict[str, str]:
        # Tune's processes have the driver's sys.path, their children only what is said here.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        result = attempt(json.loads(config["order"]), workers, environment)
        if result.state == "lost":
            raise RuntimeError(result.error)
        # A user's mistake would be made again: it is a result, not a failure to be retried.
        return {"error": result.error or ""}

    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": gpus}),
        # As text: Tune looks into tables for axes of its own.
        param_space={"order": tune.grid_search([json.dumps(order) for order in orders])},
        tune_config=tune.TuneConfig(max_concurrent_trials=workers.count, reuse_actors=True),
        run_config=tune.RunConfig(
            name=orders[0]["way"].partition(" ")[0],
            storage_path=str(workers.scratch),
            failure_config=tune.FailureConfig(max_failures=workers.retries),
            callbacks=[_telling(told)],
            verbose=0,
        ),
    )
    # A lost trial is printed with its traceback each time; what counts comes through ``told``.
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        tuner.fit()


def _telling(told: Callable[[Result], None]) -> Any:
    """Return a callback of Tune that reports every trial that has ended for good."""
    from ray import tune

    class Telling(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            error = trial.last_result.get("error")
            told(Result(_name(trial.config), "failed" if error else "done", error or None))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            told(Result(_name(trial.config), "lost", _last_line(trial)))

        def __reduce__(self) -> tuple[Any, tuple[()]]:
            # Tune keeps its callbacks on disk, to restore them; this one belongs to a process.
            return tune.Callback, ()

    return Telling()


def _name(config: dict[str, Any]) -> str:
    return str(json.loads(config["order"])["name"])


def _last_line(trial: Any) -> str:
    try:
        with open(trial.error_file, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file.read().splitlines() if line.strip()]
    except (OSError, TypeError):
        return "its worker was lost"
    return one_line(lines[-1] if lines else "its worker was lost", 200)


def _be_quiet() -> None:
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
