"""Latencies of three calls: no test looks at the figures, and hundreds take far longer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bmnas.machine.costs import Latency, measure_latency

TIMED = (
    *("bmnas.lab.table_build", "bmnas.pipeline.multimodal"),
    *("bmnas_export.benchmark", "bmnas_export.measure", "bmnas_export.targets"),
)


def timed(function: Callable[[], Any], **_: Any) -> Latency:
    """Return the latency of a function after one call that does not count."""
    return measure_latency(function, repeats=3, warm_up=1)


@pytest.fixture(autouse=True, scope="session")
def few_calls() -> Iterator[None]:
    """Time a few calls wherever a run, a bundle or a table is timed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TIMED:
            patch.setattr(importlib.import_module(name), "measure_latency", timed)
        yield
