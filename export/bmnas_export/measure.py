"""An exported network on real test samples: whether it says what torch says, and how fast.

Legend: B batch, K classes, n samples.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from bmnas_serve.session import Session
from numpy.typing import NDArray
from torch import Tensor

from bmnas.features.samples import RawInput, label_tensor
from bmnas.machine.costs import Latency, hardware, measure_latency
from bmnas.machine.errors import UserError, few
from bmnas.pipeline.multimodal import MultimodalNetwork
from bmnas.pipeline.trained import TaskInfo
from bmnas.tasks import check_task, check_test
from bmnas.tasks.task import Part, Task
from bmnas.training.heads import TaskHead
from bmnas_export.errors import ExportError, ParityError

#: Largest difference of logits that are scaled to a maximum of one.
TOLERANCE = 1e-5

BATCHES = (1, 2, 7, 64)

_TIMED_BATCHES = (1, 64)
_REPEATS, _BUDGET = 200, 0.5
_SLICE = 16  # rows that torch computes at a time: for more it takes, and clears, memory each time
_RANGE_SAMPLES = 2000


class SampleInputs:
    """The encoded samples of ``part`` that a network can be tried with.

    Raises UserError when the task is not the one that the network was trained for, when its test
    data is malformed, or when there is no sample.
    """

    def __init__(
        self, task: Task, info: TaskInfo, network: MultimodalNetwork, part: Part = "test"
    ) -> None:
        check_task(task)
        check_test(task)
        _check_fit(task, info)
        self.task, self.info, self._network = task, info, network
        self._samples = task.samples(part)
        if not len(self._samples):
            raise UserError(
                f"task {task.name}: received no {part} sample, expected at least one to try the"
                " exported network with"
            )
        self._inputs = {}
        for name in network.modalities:
            backbone = network.backbone(name)
            self._inputs[name] = RawInput(task.modality(name), backbone, self._samples)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    def batch(self, size: int) -> dict[str, Tensor]:
        """Return the samples ``spread(size)``, (size, *shape) by modality."""
        return self.rows(self.spread(size))

    def spread(self, size: int) -> Tensor:
        """Return the numbers (size,) of samples spread evenly, repeated where there are fewer."""
        return torch.from_numpy(spread(len(self), size))

    def part(self, part: Part) -> SampleInputs:
        """Return the samples of another part."""
        return SampleInputs(self.task, self.info, self._network, part)

    def rows(self, chosen: Tensor) -> dict[str, Tensor]:
        """Return the samples ``chosen`` (B,), numbers from 0, by modality (B, *shape)."""
        return {name: rows.batch(chosen) for name, rows in self._inputs.items()}

    @property
    def labels(self) -> Tensor:
        """The labels (n, …) of the samples."""
        return label_tensor(self.task, self._samples)


def spread(count: int, size: int) -> NDArray[np.int64]:
    """Return ``size`` numbers below ``count`` that are spread evenly."""
    return np.linspace(0, count - 1, size).round().astype(np.int64)


def value_ranges(task: Task, network: MultimodalNetwork) -> dict[str, tuple[float, float] | None]:
    """Return the lowest and the highest number of each input that training saw, by modality.

    Of many samples 2,000 are looked at, evenly spread, 200 where files are decoded for them. None
    for token numbers: they are names.
    """
    found: dict[str, tuple[float, float] | None] = {}
    for name in network.modalities:
        backbone = network.backbone(name)
        if backbone.input_spec.dtype == "int64":
            found[name] = None
            continue
        modality = task.modality(name)
        samples = task.having(modality, "train", "validation")
        rows = RawInput(modality, backbone, samples)
        count = min(len(samples), _RANGE_SAMPLES // (10 if rows.lazy else 1))
        chosen = torch.linspace(0, len(samples) - 1, count).long()
        ends = [torch.stack(rows.batch(part).aminmax()) for part in chosen.split(64)]
        low, high = torch.stack(ends).aminmax()
        found[name] = low.item(), high.item()
    return found


def _check_fit(task: Task, info: TaskInfo) -> None:
    received = (task.kind, tuple(task.class_names))
    wanted = (info.kind, info.class_names)
    if received != wanted:
        found, trained = (
            f"{kind} with {len(n)} classes ({few(n)})" for kind, n in (received, wanted)
        )
        raise UserError(
            f"task {task.name}: received {found}, but the network was trained on {info.name}:"
            f" {trained}; give its task with --task"
        )


@dataclass(frozen=True)
class BatchParity:
    """One batch of ``batch`` samples.

    ``difference`` is the largest one of scaled logits, ``probability_difference`` the largest one
    between the graph's other outputs and those that follow from its own logits; ``agree`` counts
    the samples that are decided the same.
    """

    batch: int
    difference: float
    probability_difference: float
    agree: int

    def within(self, tolerance: float) -> bool:
        """Tell whether both differences are; NaN is not."""
        return self.difference <= tolerance and self.probability_difference <= tolerance


@dataclass(frozen=True)
class ParityReport:
    """The comparison over all batches; ``scale`` is the largest absolute logit of torch.

    Where logits are of several scales, as scores and corners are, it is that of the first.

    ``available`` is the size of the test part: smaller than the largest batch wanted, it is the
    largest batch compared. ``logits`` are torch's of that one, ``served`` the session's.
    ``seconds`` says how long the session took, by batch size.
    """

    batches: tuple[BatchParity, ...]
    scale: float
    available: int
    logits: NDArray[Any] = field(compare=False, repr=False)
    served: NDArray[Any] = field(compare=False, repr=False)
    seconds: Mapping[int, float] = field(default_factory=dict, compare=False)
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether every batch is within ``tolerance``."""
        return all(batch.within(self.tolerance) for batch in self.batches)

    @property
    def difference(self) -> float:
        """Largest difference of scaled logits; NaN where there is one."""
        return float(np.max([batch.difference for batch in self.batches]))

    @property
    def rows(self) -> int:
        """Number of samples compared."""
        return sum(batch.batch for batch in self.batches)

    @property
    def agree(self) -> int:
        """Number of samples for which both say the same."""
        return sum(batch.agree for batch in self.batches)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready plain data."""
        return {
            "passed": self.passed,
            "reference": "torch, eager, float32",
            "max_scaled_difference": self.difference,
            "tolerance": self.tolerance,
            "scale": self.scale,
            "test_samples": self.available,
            "compared": self.rows,
            "agree": self.agree,
            "batches": {
                str(batch.batch): {
                    "max_scaled_difference": batch.difference,
                    "max_probability_difference": batch.probability_difference,
                    "agree": batch.agree,
                }
                for batch in self.batches
            },
        }


def measure_parity(
    reference: MultimodalNetwork, session: Session, inputs: SampleInputs, head: TaskHead
) -> ParityReport:
    """Compare ``session`` with ``reference`` on real samples in batches of 1, 2, 7 and 64.

    Where the test part is smaller, the largest batch is the whole of it. Torch computes that one
    alone, of which the others are rows: what a sample gets must not depend on its batch. Raises
    ParityError, with the figures, when a difference is above ``TOLERANCE`` or a logit of torch is
    not finite.
    """
    largest = min(BATCHES[-1], len(inputs))
    batch = inputs.batch(largest)
    logits = logits_of(reference, batch)
    pairs, seconds = [], {}
    for size in sorted({min(size, largest) for size in BATCHES}):
        chosen = spread(largest, size)
        rows = {name: tensor.numpy()[chosen] for name, tensor in batch.items()}
        started = time.perf_counter()
        outputs = session.run(rows)
        seconds[size] = time.perf_counter() - started
        pairs.append((logits[chosen], outputs))
    return replace(compare(pairs, head, len(inputs)), seconds=seconds)


def session_logits(session: Session, inputs: SampleInputs, chosen: Tensor) -> Tensor:
    """Return the logits (n, K) of ``session`` for the samples ``chosen`` (n,) of ``inputs``."""
    found = []
    for some in chosen.split(BATCHES[-1]):
        outputs = session.run({name: x.numpy() for name, x in inputs.rows(some).items()})
        found.append(torch.from_numpy(next(iter(outputs.values()))))
    return torch.cat(found)


def logits_of(reference: MultimodalNetwork, batch: Mapping[str, Tensor]) -> NDArray[Any]:
    """Return torch's logits (B, K) of raw inputs by modality."""
    slices = zip(*(tensor.split(_SLICE) for tensor in batch.values()), strict=True)
    with torch.inference_mode():
        logits: NDArray[Any] = torch.cat([reference(*part).float() for part in slices]).numpy()
    return logits


def compare(
    pairs: Sequence[tuple[NDArray[Any], dict[str, NDArray[Any]]]],
    head: TaskHead,
    available: int,
    tolerance: float = TOLERANCE,
) -> ParityReport:
    """Compare torch's logits with a session's outputs, a pair a batch.

    Raises ParityError where a difference is larger, ExportError where torch's are no numbers.
    """
    # numpy's maximum and not Python's, which may pass over a NaN.
    sizes_of = [[np.abs(part).max() for part in _alike(logits, head)] for logits, _ in pairs]
    scales = np.max(sizes_of, axis=0)
    if not np.isfinite(scales).all():
        raise ExportError("the trained network itself gives logits that are NaN or infinite")
    each = np.where(scales == 0, 1.0, scales)
    batches = tuple(_compare(logits, outputs, each, head) for logits, outputs in pairs)
    logits, outputs = pairs[-1]
    served = next(iter(outputs.values()))
    report = ParityReport(batches, float(scales[0]), available, logits, served, tolerance=tolerance)
    if not report.passed:
        raise ParityError(_failure(report))
    return report


def _compare(
    expected: NDArray[Any], outputs: dict[str, NDArray[Any]], scales: NDArray[Any], head: TaskHead
) -> BatchParity:
    logits, *others = outputs.values()
    # In float64, to see the graph's own rounding alone.
    wanted = [x.numpy() for x in head.served(torch.from_numpy(logits.astype(np.float64)))[1:]]
    received = {name: list(array.shape) for name, array in outputs.items()}
    if list(received.values()) != [list(x.shape) for x in (expected, *wanted)]:
        found = " and ".join(f"{name} {shape}" for name, shape in received.items())
        raise ParityError(f"onnxruntime returned {found}, torch logits {list(expected.shape)}")
    agree = _decisions(logits, head) == _decisions(expected, head)
    # Boxes are hundreds of pixels: their rounding grows with them.
    apart = [
        np.abs(x - y).max() / max(1.0, np.abs(y).max()) for x, y in zip(others, wanted, strict=True)
    ]
    off = _alike(logits.astype(np.float64) - expected, head)
    return BatchParity(
        batch=len(expected),
        difference=float(np.max([np.abs(x).max() / n for x, n in zip(off, scales, strict=True)])),
        probability_difference=float(np.max(apart, initial=0.0)),
        agree=int(agree.all(axis=1).sum()),
    )


def _alike(logits: NDArray[Any], head: TaskHead) -> list[NDArray[Any]]:
    return [part.numpy() for part in head.alike(torch.from_numpy(logits))]


def _decisions(logits: NDArray[Any], head: TaskHead) -> NDArray[Any]:
    return head.decide(torch.from_numpy(logits)).numpy()


def _failure(report: ParityReport) -> str:
    figures = "; ".join(
        f"batch {b.batch}: logits {b.difference:.2g}, probabilities"
        f" {b.probability_difference:.2g}, {b.agree} of {b.batch} agree"
        for b in report.batches
    )
    return (
        f"onnxruntime and torch differ by more than {report.tolerance:g} on logits scaled by"
        f" {report.scale:.4g}: {figures}"
    )


def measure_session(
    session: Session, inputs: SampleInputs, seconds: Mapping[int, float]
) -> dict[int, Latency]:
    """Return median and p99 of one run by batch size, 1 and 64, of a session that has run both.

    Real test samples, repeated where there are fewer. ``seconds`` are those of its runs so far, by
    batch size: where one took half a second it is the one that counts.
    """
    latency = {}
    for size in _TIMED_BATCHES:
        if seconds.get(size, 0.0) > _BUDGET:
            latency[size] = Latency(1e3 * seconds[size], 1e3 * seconds[size], 1)
            continue
        arrays = {name: tensor.numpy() for name, tensor in inputs.batch(size).items()}
        run = partial(session.run, arrays)
        latency[size] = measure_latency(run, repeats=_REPEATS, warm_up=0, budget=_BUDGET)
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
