"""Whether everything that runs on an accelerator computes what it should: against float64.

Lower precision is compared on the small case: where a number lies next to a ReLU's corner, rounding
decides whether its gradient passes, and a large case always has some such.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bmnas
from benchmarks.cases import StepCase, supernet
from benchmarks.gpu_report import Report, Setting
from bmnas.features.files import moved
from bmnas.features.samples import FeatureSamples, iterate_batches
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.cells.supernet import Supernet
from tests.support.plain_supernet import PlainSupernet, copy_parameters, parameter_pairs

#: The largest difference allowed, relative to the largest magnitude of the tensor.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
_AUTOCAST = 0.05

Forward = Callable[..., Tensor]
Pairs = Sequence[tuple[Tensor, Tensor]]


def correctness(setting: Setting, report: Report) -> None:
    """Compare whole networks, a switch of passes, and batches on their way."""
    device = setting.runtime.device
    for name, found in batches(setting.small, device).items():
        add(report, f"batches, {name}", found, 0.0)
    for form, runtime in setting.forms.items():
        for dtype, case in ((torch.float64, setting.case), (torch.float32, setting.small)):
            if form == "compiled" and dtype == torch.float64:
                continue  # the switch of passes has it
            place = f"{form}, {_name(dtype)}"
            logits, gradients = supernet_difference(case, runtime, dtype)
            add(report, f"supernet, {place}: logits", logits, TOLERANCE[dtype])
            add(report, f"supernet, {place}: gradients", gradients, TOLERANCE[dtype])
            found = network_difference(case, runtime, dtype)
            add(report, f"fusion network, {place}", found, TOLERANCE[dtype])
    logits, _ = supernet_difference(setting.small, setting.runtime, torch.float32, autocast=True)
    add(report, "supernet, eager, bfloat16: logits", logits, _AUTOCAST)
    if setting.compiled:
        compiled = setting.forms["compiled"].compiled
        found = switch_difference(setting.case, device, compiled)
        add(report, "passes in turns, compiled, float64", found, 1e-8)


def add(report: Report, name: str, difference: float, allowed: float) -> None:
    """Write down a comparison."""
    report.add("checks", name, {"difference": difference, "allowed": allowed})


def failed(checks: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the checks that differ by more than they may."""
    return [name for name, check in checks.items() if not check["difference"] <= check["allowed"]]


def supernet_difference(
    case: StepCase, runtime: bmnas.Runtime, dtype: torch.dtype, *, autocast: bool = False
) -> tuple[float, float]:
    """Return how far logits and gradients are from those of the plain form in float64."""
    plain, relaxed, features, labels = _pair(case)
    expected = plain([x.transpose(1, 2) for x in features])
    F.cross_entropy(expected, labels).backward()
    device = runtime.device
    relaxed.to(device, dtype)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        found = runtime.compiled(relaxed)([x.to(device, dtype) for x in features]).to(dtype)
    F.cross_entropy(found, labels.to(device)).backward()
    relaxed.cpu().double()
    pairs = [
        (a.grad, b)
        for a, b in parameter_pairs(plain, relaxed, gradients=True)
        if a.grad is not None
    ]
    return relative(found.detach().cpu().double(), expected.detach()), largest_difference(pairs)


def network_difference(case: StepCase, runtime: bmnas.Runtime, dtype: torch.dtype) -> float:
    """Return how far the logits of a found network are from those in float64."""
    network = fusion_network(case).eval()
    inputs = network_inputs(network, features_of(case))
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(inputs)
        on_device = [x.to(runtime.device, dtype) for x in inputs]
        found = runtime.compiled(network.to(runtime.device, dtype))(on_device)
    return relative(found.cpu().double(), expected)


def switch_difference(
    case: StepCase, device: torch.device, compiled: Callable[[nn.Module], Forward]
) -> float:
    """Return how far a compiled supernet is from the eager one after steps of both passes.

    They take turns as in Algorithm 1, with an evaluation between: what wants gradients changes,
    the norms' statistics go on.
    """
    _, eager, features, labels = _pair(case)
    eager.to(device)
    other = copy.deepcopy(eager)
    on_device = [x.to(device) for x in features]
    forward, labels = compiled(other), labels.to(device)
    ends = [
        _take_turns(network, call, on_device, labels)
        for network, call in ((eager, eager), (other, forward))
    ]
    pairs = list(zip(*(network.state_dict().values() for network in (eager, other)), strict=True))
    return largest_difference(
        [tuple(ends), *(pair for pair in pairs if pair[0].is_floating_point())]
    )


def batches(case: StepCase, device: torch.device) -> dict[str, float]:
    """Return how far batches on ``device`` are from what was stored, by the way they took."""
    torch.manual_seed(0)
    count, names = 6 * case.batch, tuple(f"m.{i}" for i in range(len(case.channels_raw)))
    arrays = {
        name: torch.randn(count, case.length, c, dtype=torch.float16)
        for name, c in zip(names, case.channels_raw, strict=True)
    }
    rows, labels = {"m": torch.randperm(count)}, torch.arange(count)
    here = FeatureSamples(names, arrays, rows, labels)
    there = FeatureSamples(names, moved(arrays, names, device), rows, labels)
    order = torch.randperm(count).split(case.batch)
    found = {}
    for way, samples in (("copied", here), ("resident", there)):
        worst = 0.0
        for chosen, found_batch in zip(order, iterate_batches(samples, order, device), strict=True):
            stored = here.batch(chosen)
            pairs = zip(
                (*found_batch.inputs, found_batch.labels),
                (*stored.inputs, stored.labels),
                strict=True,
            )
            worst = max(worst, *(float((a.cpu() - b).abs().max()) for a, b in pairs))
        found[way] = worst
    return found


def fusion_network(case: StepCase) -> FusionNetwork:
    """Return the network of a random genotype over all features of the case."""
    torch.manual_seed(0)
    names = tuple(f"m{i % 2}.{i}" for i in range(len(case.channels_raw)))
    space = CellSpace(names, case.cells, case.steps, case.channels, case.length)
    genotype = space.sample(Random(0))
    channels = dict(zip(names, case.channels_raw, strict=True))
    return FusionNetwork(genotype, channels, classes=case.classes, dropout=0.0)


def features_of(case: StepCase, batch: int | None = None) -> list[Tensor]:
    """Return random features (B, L, C_raw) in float64 on the CPU."""
    return [
        torch.randn(batch or case.batch, case.length, c, dtype=torch.float64)
        for c in case.channels_raw
    ]


def network_inputs(network: FusionNetwork, features: list[Tensor]) -> list[Tensor]:
    """Return those of ``features`` that the network reads, in its order."""
    return [features[int(name.partition(".")[2])] for name in network.features]


def largest_difference(pairs: Pairs) -> float:
    """Return the largest relative difference of pairs of expected and found tensors.

    It is relative to the largest magnitude of its tensor, but not to less than a hundredth of the
    largest of all: the bias before a BatchNorm has gradient zero, and rounding is all there is.
    """
    least = 1e-2 * max(float(expected.abs().max()) for expected, _ in pairs)
    return max(
        float((found - expected).abs().max()) / max(float(expected.abs().max()), least)
        for expected, found in pairs
    )


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest magnitude expected."""
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((found - expected).abs().max() / scale)


def _take_turns(
    network: nn.Module, forward: Forward, features: list[Tensor], labels: Tensor
) -> Tensor:
    """Run steps of both passes with an evaluation between; return the last logits."""
    assert isinstance(network, Supernet)
    weights, architecture = network.weight_parameters(), network.architecture_parameters()
    logits = torch.zeros(())
    for _ in range(2):
        network.train()
        for yes, no, steps in ((weights, architecture, 2), (architecture, weights, 1)):
            for parameter in yes:
                parameter.requires_grad_(True)
            for parameter in no:
                parameter.requires_grad_(False)
            # Not Adam: it would make large steps of the rounding in gradients that are zero.
            optimizer = torch.optim.SGD(yes, lr=0.05)
            for _ in range(steps):
                _begin(features)
                loss = F.cross_entropy(forward(features), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        network.eval()
        with torch.no_grad():
            _begin(features)
            logits = forward(features).clone()
    return logits


def _begin(features: list[Tensor]) -> None:
    """Say that results of earlier steps may be overwritten, which CUDA graphs want to know."""
    if features[0].device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()


def _pair(case: StepCase) -> tuple[PlainSupernet, Supernet, list[Tensor], Tensor]:
    """Return plain and relaxed form, equal and without dropout, features, labels: CPU, float64."""
    torch.manual_seed(0)
    plain, relaxed = supernet(case, PlainSupernet), supernet(case, Supernet)
    assert isinstance(plain, PlainSupernet)
    assert isinstance(relaxed, Supernet)
    copy_parameters(plain, relaxed)
    for module in (*plain.modules(), *relaxed.modules()):
        if isinstance(getattr(module, "p", None), float):
            module.p = 0.0
    labels = torch.randint(case.classes, (case.batch,))
    return plain.double(), relaxed.double(), features_of(case), labels


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
