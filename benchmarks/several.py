"""The steps of eight supernets at once against those of eight in a row.

    python -m benchmarks.several

Prints one JSON object: for C 128 (NTU's shape) and C 32, and for both passes of Algorithm 1, the
milliseconds of either way and their ratio, by the wall's clock and by the processor's. A step reads
its batch, goes forward and backward, and updates what its pass trains; eight in a row read eight
batches, as eight searches do. The two ways take turns, so that other work on the machine hits both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.cases import NTU, StepCase, supernet
from bmnas.features.samples import FeatureSamples
from bmnas.machine.costs import hardware
from bmnas.spaces.cells import native
from bmnas.spaces.cells.supernet import Supernet
from bmnas.spaces.cells.supernets import Supernets
from bmnas.training.heads import head_for

_SAMPLES = 1000
_PASSES = ("weights", "architecture")


def measure(case: StepCase, seeds: int, rounds: int) -> dict[str, Any]:
    """Return milliseconds and ratios of both passes, on the CPU."""
    torch.manual_seed(0)
    samples = _samples(case)
    members = [cast(Supernet, supernet(case, Supernet)) for _ in range(seeds)]
    together = Supernets(members)
    found = {}
    for name in _PASSES:
        row = [_step(network, name, samples, case.batch) for network in members]
        at_once = _step(together, name, samples, case.batch)
        found[name] = _compare(row, at_once, rounds)
    return found


def _samples(case: StepCase) -> FeatureSamples:
    names = [f"m.{number + 1}" for number in range(len(case.channels_raw))]
    arrays = {
        name: torch.randn(_SAMPLES, case.length, channels)
        for name, channels in zip(names, case.channels_raw, strict=True)
    }
    labels = torch.randint(case.classes, (_SAMPLES,))
    return FeatureSamples(tuple(names), arrays, {"m": torch.arange(_SAMPLES)}, labels)


def _step(
    network: Supernet | Supernets, name: str, samples: FeatureSamples, batch: int
) -> Callable[[], None]:
    head = head_for("multiclass")
    weights, architecture = network.weight_parameters(), network.architecture_parameters()
    trained, other = (weights, architecture) if name == "weights" else (architecture, weights)
    # As in bmnas.strategies.bilevel.
    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True if name == "weights" else None)

    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        whole = isinstance(network, Supernets)
        return (
            head.network_losses(logits.transpose(0, 1), labels)
            if whole
            else head.loss(logits, labels)
        )

    def run() -> None:
        for parameter in trained:
            parameter.requires_grad_(True)
        for parameter in other:
            parameter.requires_grad_(False)
        drawn = samples.batch(torch.randint(len(samples), (batch,)))
        loss = losses(network(drawn.inputs), drawn.labels)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()

    return run


def _compare(
    row: Sequence[Callable[[], None]], at_once: Callable[[], None], rounds: int
) -> dict[str, Any]:
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in clocks}
    for count in range(rounds + 1):
        marks = [{name: clock() for name, clock in clocks.items()}]
        for step in row:
            step()
        marks.append({name: clock() for name, clock in clocks.items()})
        at_once()
        marks.append({name: clock() for name, clock in clocks.items()})
        if count:  # the first warms up
            before, between, after = marks
            for name in clocks:
                times[name].append((between[name] - before[name], after[name] - between[name]))
    return {name: _summary(pairs) for name, pairs in times.items()}


def _summary(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    row, at_once = zip(*pairs, strict=True)
    return {
        "row_least_ms": 1e3 * min(row),
        "at_once_least_ms": 1e3 * min(at_once),
        "ratio_of_least": min(at_once) / min(row),
        "ratio_of_medians": statistics.median(at_once) / statistics.median(row),
    }


def main() -> None:
    """Measure both widths and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    found = {
        f"C {channels}": measure(replace(NTU, channels=channels), given.seeds, given.rounds)
        for channels in (128, 32)
    }
    facts = {"hardware": hardware(), "threads": torch.get_num_threads(), "way": native.describe()}
    print(json.dumps({**found, **facts}, indent=2))


if __name__ == "__main__":
    main()
