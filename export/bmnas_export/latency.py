"""How long a served network takes, measured through the session that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from bmnas_serve.session import Session

from bmnas.machine.costs import Latency, hardware, measure_latency
from bmnas_export.samples import SampleInputs

BATCHES = (1, 64)
_REPEATS = 200


def measure_session(session: Session, inputs: SampleInputs) -> dict[int, Latency]:
    """Return median and p99 of one run by batch size, 1 and 64, after warm-up.

    Real test samples, repeated where there are fewer.
    """
    latency = {}
    for size in BATCHES:
        arrays = {name: tensor.numpy() for name, tensor in inputs.batch(size).items()}
        latency[size] = measure_latency(partial(session.run, arrays), repeats=_REPEATS)
    return latency


def latency_report(latency: Mapping[int, Latency], session: Session) -> dict[str, Any]:
    """Return the figures with threads, providers and hardware as JSON-ready plain data."""
    runner = session.runner.describe()
    machine = {key: value for key, value in hardware().items() if key != "threads"}
    return {
        "onnxruntime": {f"batch_{size}": found.to_dict() for size, found in latency.items()},
        "threads": runner.threads,
        "providers": list(runner.providers),
        "hardware": machine,
    }
