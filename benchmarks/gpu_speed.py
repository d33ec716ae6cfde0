"""How long a supernet's step and a found network take on an accelerator."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import bmnas
from benchmarks.cases import products, step, synchronise
from benchmarks.gpu_checks import features_of, fusion_network, network_inputs, switch_difference
from benchmarks.gpu_report import Report, Setting
from bmnas.machine.costs import measure_latency
from bmnas.spaces.cells.supernet import Supernet
from tests.support.plain_supernet import PlainSupernet

_BATCHES = (1, 64)
_QUEUED = 50  # steps that are timed as one


def steps(setting: Setting, report: Report) -> None:
    """Time a step in every precision and form, and the products alone, which bound it."""
    case, eager, device = setting.case, setting.runtime, setting.runtime.device
    precisions = ["float32", "bfloat16"]
    if device.type == "cuda":
        precisions.append("TF32")
    for precision in precisions:
        half = precision == "bfloat16"
        dtype = torch.bfloat16 if half else torch.float32
        with _tf32(precision == "TF32"):
            floor = _timed(products(case, device, dtype), device)
            report.add(precision, "products alone", floor)
            if precision == "float32":
                plain = _timed(step(case, PlainSupernet, eager), device)
                report.add(precision, "plain, eager", _with_share(plain, floor))
            for form, runtime in setting.forms.items():
                found = _timed(step(case, Supernet, runtime, bfloat16=half), device)
                report.add(precision, f"supernet, {form}", _with_share(found, floor))


def latency(setting: Setting, report: Report) -> None:
    """Time the found network, call by call."""
    device = setting.runtime.device
    network = fusion_network(setting.case).to(device).eval()
    for form, runtime in setting.forms.items():
        forward = runtime.compiled(network)
        for batch in _BATCHES:
            features = network_inputs(network, features_of(setting.case, batch))
            call = _inference(forward, [x.to(device, torch.float32) for x in features], device)
            found = measure_latency(call, warm_up=20, budget=3.0).to_dict()
            report.add("milliseconds", f"fusion network, {form}, batch {batch}", found)


def cuda_graphs(setting: Setting, report: Report) -> None:
    """Compare and time the supernet under torch.compile with CUDA graphs, which nothing uses yet.

    Whether it may be used is for these figures to say, so a difference here fails no run.
    """
    device = setting.runtime.device
    if device.type != "cuda" or not setting.compiled:
        report.add("left_out", "why", "for torch.compile on CUDA alone")
        return
    report.add("difference", "passes in turns", switch_difference(setting.case, device, _graphs))
    runtime = _Graphs(device, compile=True)
    report.add("float32", "supernet", _timed(step(setting.case, Supernet, runtime), device))


class _Graphs(bmnas.Runtime):
    def compiled(self, network: nn.Module) -> Callable[..., Tensor]:
        return _graphs(network)


def _graphs(network: nn.Module) -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(network, mode="reduce-overhead")
    return compiled


def _timed(call: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Return milliseconds of a call: each waited for, and many queued before one is waited for.

    The first has the time that a launch takes in it, the second is what a loop pays.
    """

    def alone() -> None:
        call()
        synchronise(device)

    waited = measure_latency(alone, warm_up=10, budget=2.0)
    queued = min(_QUEUED, max(1, int(2e3 / waited.median_ms)))
    started = time.perf_counter()
    for _ in range(queued):
        call()
    synchronise(device)
    milliseconds = 1e3 * (time.perf_counter() - started) / queued
    return {**waited.to_dict(), "queued_ms": milliseconds}


def _with_share(found: dict[str, float], floor: dict[str, float]) -> dict[str, float]:
    """Add what part of a queued step the products alone would take: its share of the limit."""
    return {**found, "share_of_limit": floor["queued_ms"] / found["queued_ms"]}


def _inference(
    forward: Callable[..., Tensor], features: list[Tensor], device: torch.device
) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            forward(features)
        synchronise(device)

    return run


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
