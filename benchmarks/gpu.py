"""Correctness and speed on an accelerator, as one JSON file.

    python -m benchmarks.gpu --out benchmarks/results/<date>-<device>.json

Correctness comes first, and a piece that is wrong ends the run with status 1: then its speed is
of no interest. ``--tiny --device cpu`` shows on any machine that everything runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bmnas
from benchmarks.cases import NTU, TINY, StepCase, products, step, supernet, synchronise
from bmnas.config import SearchConfig
from bmnas.cost import hardware, measure_latency, versions
from bmnas.files import write_json
from bmnas.network import FusionNetwork
from bmnas.strategies.random import random_genotype
from bmnas.supernet import Supernet
from tests.support.plain_supernet import Pairs, PlainSupernet, copy_parameters, parameter_pairs

#: The largest difference allowed, relative to the largest magnitude of the tensor.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def main() -> None:
    """Check, measure, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that it runs")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    eager = bmnas.Runtime.choose(options.device, compile=False)
    compiled = bmnas.Runtime(eager.device, compile=True)
    case = TINY if options.tiny else NTU
    checks = correctness(case, eager, compiled)
    report = {
        "hardware": hardware(eager.device),
        "versions": {**versions(), "cuda": torch.version.cuda},
        "case": "tiny" if options.tiny else "BM-NAS, NTU configuration",
        "correctness": checks,
        "milliseconds": {} if failed(checks) else speed(case, eager, compiled),
    }
    write_json(options.out, report)
    print(json.dumps(report, indent=2))
    if failed(checks):
        sys.exit(f"not equal: {', '.join(failed(checks))}")


def failed(checks: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the checks that differ by more than they may."""
    return [name for name, check in checks.items() if not check["difference"] <= check["allowed"]]


def correctness(
    case: StepCase, eager: bmnas.Runtime, compiled: bmnas.Runtime
) -> dict[str, dict[str, Any]]:
    """Return the largest relative difference of each pair of forms that must be equal."""
    checks = {}
    for dtype, allowed in TOLERANCE.items():
        name = str(dtype).removeprefix("torch.")
        plain, fused, features, labels = _pair(case, eager.device, dtype)
        reference = _gradients(plain, plain, [x.transpose(1, 2) for x in features], labels)
        for form, runtime in (("eager", eager), ("compiled", compiled)):
            found = _gradients(fused, runtime.compiled(fused), features, labels)
            checks[f"supernet, {form}, {name}: logits"] = {
                "difference": relative(found, reference),
                "allowed": allowed,
            }
            pairs = parameter_pairs(plain, fused, gradients=True)
            checks[f"supernet, {form}, {name}: gradients"] = {
                "difference": gradient_difference(pairs),
                "allowed": allowed,
            }
        network = fusion_network(case).to(eager.device, dtype).eval()
        pooled = _inputs(network, features)
        with torch.no_grad():
            on_cpu = copy.deepcopy(network).cpu().double()([x.cpu().double() for x in pooled])
            for form, runtime in (("eager", eager), ("compiled", compiled)):
                found = runtime.compiled(network)(pooled)
                checks[f"fusion network against float64 on the CPU, {form}, {name}"] = {
                    "difference": relative(found.cpu().double(), on_cpu),
                    "allowed": allowed,
                }
    return checks


def speed(case: StepCase, eager: bmnas.Runtime, compiled: bmnas.Runtime) -> dict[str, Any]:
    """Return medians and 99th percentiles in milliseconds."""
    calls: dict[str, Callable[[], None]] = {
        "supernet step, plain": step(case, PlainSupernet, eager),
        "supernet step, fused": step(case, Supernet, eager),
        "supernet step, fused and compiled": step(case, Supernet, compiled),
        "matrix products of a step alone": products(case, eager),
    }
    network = fusion_network(case).to(eager.device).eval()
    for batch in (1, 64):
        features = _inputs(network, _features(case, eager.device, torch.float32, batch))
        for form, runtime in (("eager", eager), ("compiled", compiled)):
            calls[f"fusion network, {form}, batch {batch}"] = _inference(
                runtime.compiled(network), features, eager.device
            )
    return {name: measure_latency(call, warm_up=20).to_dict() for name, call in calls.items()}


def fusion_network(case: StepCase) -> FusionNetwork:
    """Return the network of a random genotype over all features of the case."""
    torch.manual_seed(0)
    names = tuple(f"m{i % 2}.{i}" for i in range(len(case.channels_raw)))
    settings = SearchConfig(
        cells=case.cells, steps=case.steps, channels=case.channels, length=case.length
    )
    genotype = random_genotype(names, settings, Random(0))
    channels = dict(zip(names, case.channels_raw, strict=True))
    return FusionNetwork(genotype, channels, classes=case.classes, dropout=0.0)


def _inputs(network: FusionNetwork, features: list[Tensor]) -> list[Tensor]:
    """Return those of ``features`` that the network reads, in its order."""
    return [features[int(name.partition(".")[2])] for name in network.features]


def gradient_difference(pairs: Pairs) -> float:
    """Return the largest relative difference of a gradient.

    It is relative to the largest magnitude of its tensor, but not to less than a thousandth of the
    largest of all: the bias before a BatchNorm has gradient zero, and rounding is all there is.
    """
    compared = [(a.grad, b) for a, b in pairs if a.grad is not None]
    least = 1e-3 * max(float(expected.abs().max()) for expected, _ in compared)
    return max(
        float((found - expected).abs().max()) / max(float(expected.abs().max()), least)
        for expected, found in compared
    )


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest magnitude expected."""
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((found - expected).abs().max() / scale)


def _inference(
    forward: Callable[..., Tensor], features: list[Tensor], device: torch.device
) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            forward(features)
        synchronise(device)

    return run


def _pair(
    case: StepCase, device: torch.device, dtype: torch.dtype
) -> tuple[PlainSupernet, Supernet, list[Tensor], Tensor]:
    """Return plain and fused form with equal weights and no dropout, features and labels."""
    torch.manual_seed(0)
    plain, fused = supernet(case, PlainSupernet), supernet(case, Supernet)
    assert isinstance(plain, PlainSupernet)
    assert isinstance(fused, Supernet)
    copy_parameters(plain, fused)
    for module in (*plain.modules(), *fused.modules()):
        if isinstance(getattr(module, "p", None), float):
            module.p = 0.0
    labels = torch.randint(case.classes, (case.batch,), device=device)
    features = _features(case, device, dtype, case.batch)
    return plain.to(device, dtype), fused.to(device, dtype), features, labels


def _features(case: StepCase, device: torch.device, dtype: torch.dtype, batch: int) -> list[Tensor]:
    return [
        torch.randn(batch, case.length, c, device=device, dtype=dtype) for c in case.channels_raw
    ]


def _gradients(
    network: nn.Module, forward: Callable[..., Tensor], features: list[Tensor], labels: Tensor
) -> Tensor:
    """Run forward and backward; return the logits, leave the gradients in ``network``."""
    network.zero_grad(set_to_none=True)
    logits = forward(features)
    F.cross_entropy(logits, labels).backward()
    return logits.detach()


if __name__ == "__main__":
    main()
