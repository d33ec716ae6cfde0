"""What Algorithm 1 would take on GPUs that are not at hand: arithmetic, nothing is measured.

A step is run on the processor, and its floating-point operations, the bytes that its operations
read and write, and the operations themselves are counted. A card takes the time of both at ``USE``
of its peaks, but no less than the launching of the operations takes, nor than the copying of a
batch where the features find no room on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bmnas.features.cache import FRACTION
from bmnas.machine.costs import count_parameters
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies.problem import search_steps

if TYPE_CHECKING:
    from bmnas.lab.planning import Plan

#: The part of a card's peaks that is reached, seconds to launch an operation, bytes a second to it.
USE, LAUNCH, COPY = 0.5, 10e-6, 16e9
_ADAM_BYTES = 28  # a parameter: it reads weight, gradient and two moments, and writes three of them
_KEPT_BYTES = 16  # a parameter: weight, gradient and two moments
_CLASSES = 60  # they hardly matter


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
    """Milliseconds of a step, what it waits for most, seconds of all steps, bytes on the card."""

    name: str
    step_ms: float
    limit: str
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Work:
    """Floating-point operations, bytes moved and operations launched in a training step.

    ``kept`` are the bytes that its forward pass writes.
    """

    flops: int
    bytes: int
    operations: int
    kept: int


def on_cards(plan: Plan) -> list[CardEstimate]:
    """Return what Algorithm 1 of ``plan`` would take on each of ``CARDS``, one seed after another.

    A batch of validation is a third of a step; its other stages are left out.
    """
    search, counts = plan.search, plan.samples
    work, weights = step_work(plan)
    alone = search.epochs * counts["validation"] / search.batch_size
    steps = search_steps(search, counts["train"], counts["validation"]) + alone / 3
    batch = plan.cache_bytes / sum(counts.values()) * search.batch_size
    found = []
    for card in CARDS:
        there = plan.cache_bytes <= FRACTION * card.memory
        limits = {
            "arithmetic and memory": work.flops / (USE * card.flops)
            + work.bytes / (USE * card.bandwidth),
            "launches": work.operations * LAUNCH,
            "copying of batches": 0.0 if there else batch / COPY,
        }
        limit = max(limits, key=lambda name: limits[name])
        needed = _KEPT_BYTES * weights + work.kept + (plan.cache_bytes if there else batch)
        seconds = plan.seeds * steps * limits[limit]
        found.append(CardEstimate(card.name, 1e3 * limits[limit], limit, seconds, int(needed)))
    return found


def step_work(plan: Plan) -> tuple[Work, int]:
    """Return what a step of the supernet of ``plan`` does, Adam's included, and its weights."""
    search = plan.search
    supernet = Supernet(
        list(plan.features.values()),
        cells=search.cells,
        steps=search.steps,
        channels=search.channels,
        length=search.length,
        classes=_CLASSES,
        dropout=search.dropout,
    )
    shape = (search.batch_size, search.length)
    features = [torch.zeros(*shape, channels) for channels in plan.features.values()]
    labels = torch.zeros(search.batch_size, dtype=torch.int64)
    counter = _Counter()  # type: ignore[no-untyped-call]
    products = FlopCounterMode(display=False)
    with products, counter:
        loss = F.cross_entropy(supernet(features), labels)
        kept = counter.written
        loss.backward()
    weights = count_parameters(supernet)
    moved = counter.read + counter.written + _ADAM_BYTES * weights
    return Work(products.get_total_flops(), moved, counter.operations, kept), weights


class _Counter(TorchDispatchMode):
    """Counts the operations that do something, and the bytes that they read and write."""

    operations = read = written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            self.read += _bytes(args)
            self.written += _bytes(found)
        return found


def _bytes(values: Any) -> int:
    return sum(value.nbytes for value in tree_leaves(values) if isinstance(value, Tensor))
