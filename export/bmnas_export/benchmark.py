"""How long each form of an exported network takes, beside torch, on the machine at hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bmnas_serve import manifest as bundle
from bmnas_serve.runner import usable_cpus
from bmnas_serve.session import Session
from torch import Tensor

from bmnas.machine.costs import hardware, measure_latency
from bmnas.machine.files import write_json
from bmnas.machine.progress import Progress
from bmnas.pipeline.trained import TrainedNetwork
from bmnas.report.latency import EAGER
from bmnas.tasks.task import Task
from bmnas_export.measure import SampleInputs
from bmnas_export.prepare import reference_network
from bmnas_export.targets import ONNX

BATCHES = (1, 8, 64)

_REPEATS, _BUDGET = 200, 2.0


def benchmark_bundle(
    folder: Path,
    trained: TrainedNetwork,
    task: Task,
    *,
    compiled: bool = False,
    progress: Progress | None = None,
) -> bundle.Manifest:
    """Time every target of the bundle ``folder`` that onnxruntime opens, and torch; note it there.

    One thread and all, batches of 1, 8 and 64 test samples, repeated where there are fewer;
    ``compiled`` times torch.compile too. Returns the manifest, whose ``latency`` has the figures
    under ``benchmark``. Raises BundleError and UserError as opening and ``export_bundle`` do.
    """
    manifest = bundle.load(folder)
    reference = reference_network(trained.network)
    inputs = SampleInputs(task, trained.task, reference)
    files = {name: spec.file for name, spec in manifest.targets.items()}
    targets = [ONNX, *(name for name, file in files.items() if file.endswith(".onnx"))]
    every = usable_cpus()
    runs: list[dict[str, Any]] = []

    def served(network: Callable[..., Tensor], batch: dict[str, Tensor]) -> None:
        with torch.inference_mode():
            trained.task.head.served(network(*batch.values()).float())

    eager: dict[str, Callable[..., Tensor]] = {EAGER: reference}
    if compiled:
        eager["torch compiled"] = torch.compile(reference)
    threads = sorted({1, every})
    units = len(threads) * (len(eager) + len(targets))
    with (progress or Progress()).stage("benchmark", units) as stage:
        for count in threads:
            calls: dict[str, Callable[[dict[str, Tensor]], Any]] = {
                name: partial(served, network) for name, network in eager.items()
            }
            for name in targets:
                target = None if name == ONNX else name
                session = Session.open(folder, target=target, intra_op_threads=count)
                calls[name] = partial(_run, session)
            for name, call in calls.items():
                stage.message(f"{name}, {count} threads")
                with _torch_threads(count):
                    for size in BATCHES:
                        timed = measure_latency(
                            partial(call, inputs.batch(size)), repeats=_REPEATS, budget=_BUDGET
                        )
                        key = {"target": name, "threads": count, "batch": size}
                        runs.append({**key, **timed.to_dict()})
                stage.advance()
    machine = {key: value for key, value in hardware().items() if key != "threads"}
    latency = {**manifest.latency, "benchmark": {"runs": runs, "hardware": machine}}
    measured = replace(manifest, latency=latency)
    write_json(folder / bundle.MANIFEST_FILE, measured.to_file())
    return measured


def _run(session: Session, batch: dict[str, Tensor]) -> None:
    session.run({name: tensor.numpy() for name, tensor in batch.items()})


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
