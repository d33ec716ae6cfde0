"""What Algorithm 1 would take on GPUs that are not at hand: arithmetic, nothing is measured.

A step is run on the processor as CUDA would run it without torch.compile: the gathering of a
batch, both passes, fused Adam. Counted are the floating-point operations of its products, the bytes
that its operations read and write, and the kernels that they launch, one each. A card takes the
longest of three: arithmetic and memory at ``USE`` of its peaks, the launches, and the copying of a
batch where the features find no room on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bmnas.features.cache import FRACTION
from bmnas.features.layers import dropout
from bmnas.features.samples import AT_ONCE, FeatureSamples
from bmnas.machine.costs import count_parameters
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies.problem import search_steps

if TYPE_CHECKING:
    from bmnas.lab.planning import Plan

#: The part of a card's peaks that is reached, seconds to launch a kernel, bytes a second to it.
USE, LAUNCH, COPY = 0.5, 10e-6, 16e9
#: Of Adam: bytes that it reads (weight, gradient, two moments) and writes for a parameter; kernels.
ADAM_READ, ADAM_WRITTEN, ADAM_LAUNCHES = 16, 12, 4
_KEPT_BYTES = 16  # a parameter: weight, gradient and two moments
CLASSES = 60  # where no task says how many; they hardly matter
_LAUNCHES_NOTHING = ("empty", "_unsafe_view")  # beside what torch calls a view


@dataclass(frozen=True)
class Card:
    """A GPU's peaks by its maker: float32 operations without tensor cores and bytes, a second."""

    name: str
    flops: float
    bandwidth: float
    memory: float


#: The first is the paper's.
CARDS = (
    Card("M40, 12 GB", 6.8e12, 288e9, 12e9),
    Card("RTX 3090", 35.6e12, 936e9, 24e9),
    Card("RTX 4090", 82.6e12, 1008e9, 24e9),
    Card("A100, 40 GB", 19.5e12, 1555e9, 40e9),
    Card("H100 SXM", 66.9e12, 3350e9, 80e9),
)


@dataclass(frozen=True)
class CardEstimate:
    """Milliseconds of a step by what it waits for, seconds of all steps, bytes on the card.

    A step takes the longest of the three.
    """

    name: str
    arithmetic_ms: float
    launches_ms: float
    copying_ms: float
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Work:
    """Floating-point operations of products, bytes read and written, kernels launched."""

    flops: int
    read: int
    written: int
    launches: int

    def seconds(self, card: Card, copied: float) -> tuple[float, float, float]:
        """Return what arithmetic, launches and the copying of so many bytes take on ``card``."""
        memory = (self.read + self.written) / (USE * card.bandwidth)
        return self.flops / (USE * card.flops) + memory, self.launches * LAUNCH, copied / COPY


@dataclass(frozen=True)
class SearchWork:
    """Work of a training step and of a batch of validation, ``at_once`` samples.

    ``kept`` are the bytes that the forward pass of the step writes.
    """

    step: Work
    validation: Work
    at_once: int
    kept: int
    weights: int


def on_cards(plan: Plan) -> list[CardEstimate]:
    """Return what Algorithm 1 of ``plan`` would take on each of ``CARDS``, one seed after another.

    A step of the architecture is taken for one of the weights; other stages are left out.
    """
    search, counts, work = plan.search, plan.samples, search_work(plan)
    steps = search_steps(search, counts["train"], counts["validation"])
    evaluations = search.epochs * math.ceil(counts["validation"] / work.at_once)
    row = plan.cache_bytes / sum(counts.values())
    found = []
    for card in CARDS:
        there = plan.cache_bytes <= FRACTION * card.memory
        copied = 0.0 if there else row
        times = work.step.seconds(card, copied * search.batch_size)
        evaluating = work.validation.seconds(card, copied * work.at_once)
        seconds = plan.seeds * (steps * max(times) + evaluations * max(evaluating))
        features = plan.cache_bytes if there else row * search.batch_size
        needed = _KEPT_BYTES * work.weights + work.kept + features
        arithmetic, launches, copying = (1e3 * each for each in times)
        found.append(CardEstimate(card.name, arithmetic, launches, copying, seconds, int(needed)))
    return found


def search_work(plan: Plan) -> SearchWork:
    """Return what the supernet of ``plan`` has to do."""
    search = plan.search
    supernet = Supernet(
        list(plan.features.values()),
        cells=search.cells,
        steps=search.steps,
        channels=search.channels,
        length=search.length,
        classes=CLASSES,
        dropout=search.dropout,
    )

    def loss(count: int) -> Tensor:
        features = {name: torch.zeros(count, search.length, c) for name, c in plan.features.items()}
        every = torch.arange(count)
        rows = {name.partition(".")[0]: every for name in features}
        labels = torch.zeros(count, dtype=torch.int64)
        batch = FeatureSamples(tuple(features), features, rows, labels).batch(every)
        return F.cross_entropy(supernet(batch.inputs), batch.labels)

    forward = work_of(lambda: loss(search.batch_size))
    step = work_of(lambda: loss(search.batch_size).backward())
    weights = count_parameters(supernet)
    step = replace(
        step,
        read=step.read + ADAM_READ * weights,
        written=step.written + ADAM_WRITTEN * weights,
        launches=step.launches + ADAM_LAUNCHES,
    )
    at_once = min(AT_ONCE, plan.samples["validation"])
    supernet.eval()
    with torch.no_grad():
        validation = work_of(lambda: loss(at_once))
    return SearchWork(step, validation, at_once, forward.written, weights)


def work_of(run: Callable[[], object]) -> Work:
    """Return the work of ``run``, which is done on the processor."""
    counter = _Counter()  # type: ignore[no-untyped-call]
    products = FlopCounterMode(display=False)
    with products, counter, _AsOnCUDA():
        run()
    return Work(products.get_total_flops(), counter.read, counter.written, counter.launches)


class _AsOnCUDA(TorchFunctionMode):
    """Has layers do as on CUDA what they do otherwise on a processor: dropout is one operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is dropout:
            x, p, training = args
            return torch.native_dropout(x, p, True)[0] if training and p else x
        return func(*args, **(kwargs or {}))


class _Counter(TorchDispatchMode):
    """Counts the operations that launch something, and the bytes that they read and write."""

    launches = read = written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in _LAUNCHES_NOTHING:
            self.launches += 1
            self.read += _bytes(args)
            self.written += _bytes(found)
        return found


def _bytes(values: Any) -> int:
    return sum(value.nbytes for value in tree_leaves(values) if isinstance(value, Tensor))
