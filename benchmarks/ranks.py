"""The supernet step on several ranks.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.ranks

Prints one JSON object: milliseconds of a step, and how many processes shared its batch. Without
torchrun it is the step of one process.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cases import NTU, StepCase, supernet, synchronise
from bmnas.machine.costs import hardware
from bmnas.machine.distributed import (
    data_parallel,
    is_rank_zero,
    joined,
    split_batches,
    world_size,
)
from bmnas.machine.runtime import Runtime
from bmnas.spaces.cells.supernet import Supernet

_WARM_UP = 5


def measure(case: StepCase, runtime: Runtime, repeats: int) -> dict[str, Any]:
    """Return median and least milliseconds of a step: forward, backward, Adam."""
    torch.manual_seed(0)
    device = runtime.device
    network = supernet(case, Supernet).to(device)
    features = [
        torch.randn(case.batch, case.length, channels, device=device)
        for channels in case.channels_raw
    ]
    labels = torch.randint(case.classes, (case.batch,)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    forward = data_parallel(network, list(network.parameters()), runtime.compiled(network))
    times = []
    for chosen in split_batches([torch.arange(case.batch)] * (_WARM_UP + repeats)):
        rows = chosen.to(device)
        inputs = [x[rows] for x in features]
        synchronise(device)
        started = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(forward(inputs), labels[rows]).backward()
        optimizer.step()
        synchronise(device)
        times.append(1e3 * (time.perf_counter() - started))
    times = times[_WARM_UP:]
    return {
        "processes": world_size(),
        "median_ms": statistics.median(times),
        "least_ms": min(times),
        "hardware": hardware(device),
    }


def main() -> None:
    """Measure the step of NTU's shape and print what was found."""
    with joined():
        found = measure(NTU, Runtime.choose("auto", compile=False), 50)
        if is_rank_zero():
            print(json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main()
