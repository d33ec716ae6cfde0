"""The search of MMnas: single paths for the weights, gates for alpha (Yu et al., ACM MM 2020).

Each step draws an operation for every block by softmax(alpha) and trains the weights of that path
alone. Every few steps another batch, of train samples that the weights do not see, gives alpha its
gradient, see ``Choice``. By default the supernet then judges networks with its weights, and short
trainings of the best ones decide.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from bmnas.features.pairs import PairSamples
from bmnas.features.samples import (
    Batch,
    FeatureSamples,
    batches_per_epoch,
    epoch_batches,
    iterate_batches,
    samples_per_epoch,
)
from bmnas.machine.checkpoint import Record, Stateful
from bmnas.machine.costs import CostMeter
from bmnas.machine.distributed import data_parallel, split_batches
from bmnas.machine.runtime import seed_stage, stage_seed
from bmnas.spaces.mmnas.genotype import MMnasGenotype
from bmnas.spaces.mmnas.space import MMnasSpace, operations_of
from bmnas.spaces.mmnas.supernet import Supernet
from bmnas.strategies.mmnas import MMnas, MMnasConfig
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost
from bmnas.strategies.rerank import compare, screened
from bmnas.training.fit import (
    clipped_adam,
    cosine_schedule,
    descend,
    largest_gradient,
    loss_of_logits,
    official_schedule,
    require_finite_loss,
)
from bmnas.training.metrics import evaluate
from bmnas.training.mining import hardest

_ALPHA_BETAS = (0.0, 0.999)
SAMPLES, _BATCH = 1000, 100  # that judge a network, at most; relations take much room


def search_with_gates(problem: SearchProblem) -> Outcome[MMnasGenotype]:
    """Search with a supernet; with ``config.rerank`` of 1 or more, short trainings decide.

    These compare the likeliest network, MCAN and MCAN with guided attention first; as far as
    ``rerank`` leaves room, also the best of those that the supernet has judged, drawn by turns by
    softmax(alpha) and evenly. Raises UserError when a loss is no longer finite.
    """
    space = cast(MMnasSpace, problem.space_for(MMnas))
    records, supernet, parts = relax(problem, space)
    last, meter = records[-1], problem.checkpoint.meter
    epochs, size = problem.config.epochs, problem.config.batch_size
    steps = sum(record["alpha_steps"] for record in records)
    weights, alpha = parts
    seen = epochs * samples_per_epoch(len(weights), size) + steps * min(size, len(alpha))
    samples = {"search_weights": seen, "validation": epochs * len(problem.validation)}
    outcome = Outcome(
        genotype=space.made(last["operations"]),
        validation=last["validation_score"],
        candidates=1,
        samples_seen=seen,
        threshold=last.get("threshold"),
        seconds=problem.checkpoint.seconds,
        processor_seconds=problem.checkpoint.processor_seconds,
        stages={n: StageCost(meter.seconds.get(n, 0.0), count) for n, count in samples.items()},
        best_epoch=last["epoch"],
    )
    if problem.config.rerank:
        found = _candidates(problem, space, outcome.genotype, supernet)
        outcome = compare(problem, space, outcome, found, {"screening": 0}, rungs=1)
    return dataclasses.replace(outcome, genotype=space.final(outcome.genotype))


def relax(
    problem: SearchProblem, space: MMnasSpace
) -> tuple[list[Record], Supernet, tuple[FeatureSamples, FeatureSamples]]:
    """Train the supernet; return a record of every epoch, it, and the two parts of train."""
    config, meter = problem.config, problem.checkpoint.meter
    own: MMnasConfig = problem.own
    supernet = _supernet(problem, space)
    second = space.features[1].partition(".")[0]
    train, held_out = parts_of(problem.train.select(space.features), second, own)
    weights, size = supernet.weight_parameters(), config.batch_size
    on_weights, schedule = _training(problem, weights, len(train))
    gates = _Gates(problem, supernet, held_out)
    states: dict[str, Stateful] = {
        "supernet": supernet,
        "weights": on_weights,
        "architecture": gates.optimizer,
        "schedule": schedule,
    }
    records = problem.checkpoint.restore(states)
    if own.stale_momentum:
        on_weights.register_step_pre_hook(lambda *_: _fill(weights))
    on_weights.register_step_post_hook(lambda *_: gates.after_step())
    forward, minimised = _drawn(supernet), loss_of_logits(problem.head)
    forward = data_parallel(supernet, weights, forward)
    validation = problem.validation.select(space.features)
    hard_from = 1 + max(len(records), round(own.hard_from * config.epochs))
    with problem.progress.stage("search", config.epochs) as shown:
        shown.advance(len(records))
        for epoch in range(len(records) + 1, config.epochs + 1):
            rate = schedule.get_last_lr()[0]
            supernet.train()
            if epoch == hard_from:
                _find_hard(supernet, (train, held_out), own.negatives)
            with meter.stage("search_weights"):
                gates.begin(learning=epoch > round(own.warm_up * config.epochs))
                loss = descend(forward, train, size, minimised, on_weights, schedule)
            operations = supernet.likeliest()
            supernet.choose(operations)
            with meter.stage("validation"):
                place = problem.head, problem.runtime.device
                found = evaluate(supernet, supernet, validation, *place)
            record: Record = {
                "epoch": epoch,
                "learning_rate": rate,
                "train_loss": require_finite_loss(loss, "search", epoch),
                **gates.record(epoch),
                "validation_loss": require_finite_loss(found.loss, "search", epoch),
                "validation_score": found.score,
                # What is found is what alpha prefers in the end.
                "best": epoch == config.epochs,
                "operations": operations,
                "probabilities": supernet.probabilities(),
                **problem.threshold(found.logits),
            }
            records.append(record)
            problem.checkpoint.save(states, records)
            shown.message(f"loss {loss:.3f}  validation {problem.head.metric} {found.score:.3f}")
            shown.advance()
    return records, supernet, (train, held_out)


def _supernet(problem: SearchProblem, space: MMnasSpace) -> Supernet:
    """Return the supernet before its first step, with alpha where the settings say."""
    seed_stage(problem.seed, "search")
    channels, dropout = problem.train.channels, problem.config.dropout
    supernet = Supernet(space, channels, classes=problem.classes, dropout=dropout)
    if problem.own.start == "mcan":
        supernet.begin_at(operations_of(space.start()))
    return supernet.to(problem.runtime.device)


def _training(
    problem: SearchProblem, weights: Sequence[nn.Parameter], count: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Return what trains ``weights`` on ``count`` samples, and its rates."""
    config, own, size = problem.config, problem.own, problem.config.batch_size
    batches = batches_per_epoch(count, size)
    if own.steps == "official":
        most = largest_gradient(problem.head, min(size, count), own.gpu_batch)
        optimizer = clipped_adam(weights, config.max_lr, most)
        return optimizer, official_schedule(optimizer, batches)
    optimizer = clipped_adam(weights, config.max_lr, 1.0)
    steps = config.epochs * batches
    return optimizer, cosine_schedule(optimizer, steps, config.min_lr, config.warmup_steps)


class _Gates:
    """The steps of alpha, made between those of the weights."""

    def __init__(
        self, problem: SearchProblem, supernet: Supernet, held_out: FeatureSamples
    ) -> None:
        self._own: MMnasConfig = problem.own
        self._size = problem.config.batch_size
        self._device, self._loss = problem.runtime.device, loss_of_logits(problem.head)
        self._held_out = held_out
        self._supernet, self._weights = supernet, supernet.weight_parameters()
        alphas = supernet.architecture_parameters()
        self.optimizer = torch.optim.Adam(alphas, self._own.alpha_lr, _ALPHA_BETAS)
        _require_gradients(self._weights, wanted=False)
        self._forward = data_parallel(supernet, alphas, _drawn(supernet, gated=True))
        _require_gradients(self._weights, wanted=True)

    def begin(self, *, learning: bool) -> None:
        """Begin another epoch; without ``learning`` there are no steps in it."""
        self._learning, self._passed, self._losses = learning, 0, list[Tensor]()
        if learning and isinstance(self._held_out, PairSamples):
            self._held_out.wrong.renew()
        self._batches = self._endless()

    def after_step(self) -> None:
        """Make a step of alpha where one is due."""
        self._passed += 1
        if not self._learning or self._passed % self._own.alpha_every:
            return
        batch = next(self._batches)
        _require_gradients(self._weights, wanted=False)
        loss = self._loss(self._forward(*batch.arguments), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        _require_gradients(self._weights, wanted=True)
        self._losses.append(loss.detach())

    def record(self, epoch: int) -> Record:
        """Return the steps of the epoch, and their mean loss if there were any."""
        if not self._losses:
            return {"alpha_steps": 0}
        mean = float(torch.stack(self._losses).mean())
        found = require_finite_loss(mean, "search", epoch)
        return {"alpha_steps": len(self._losses), "architecture_loss": found}

    def _endless(self) -> Iterator[Batch]:
        while True:
            batches = split_batches(epoch_batches(len(self._held_out), self._size))
            yield from iterate_batches(self._held_out, batches, self._device)


def _find_hard(supernet: Supernet, parts: Sequence[FeatureSamples], count: int) -> None:
    """Let a drawn path find the wrong pairs that samples of a matching task are shown with."""

    def find(part: FeatureSamples) -> Tensor:
        supernet.draw()
        return hardest(supernet, part, count)

    for part in parts if count else ():
        if isinstance(part, PairSamples):
            part.wrong.find = functools.partial(find, part)


def _drawn(supernet: Supernet, *, gated: bool = False) -> Callable[..., Tensor]:
    """Return what draws a network and runs it."""

    def forward(*arguments: Any) -> Tensor:
        supernet.draw(gated=gated)
        logits: Tensor = supernet(*arguments)
        return logits

    return forward


def _fill(weights: Sequence[nn.Parameter]) -> None:
    """Give what has no gradient one of zero: Adam then goes on moving it."""
    for parameter in weights:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _require_gradients(weights: Sequence[nn.Parameter], *, wanted: bool) -> None:
    for parameter in weights:
        parameter.requires_grad_(wanted)


def parts_of(
    train: FeatureSamples, modality: str, own: MMnasConfig
) -> tuple[FeatureSamples, FeatureSamples]:
    """Return the samples that weights are trained on, and those for alpha, in their order.

    No row of ``modality`` is in both, unless the file's order decides. Draws from torch's global
    generator.
    """
    place = torch.arange(len(train))
    if own.split == "rows":
        unique, row = torch.unique(train.rows[modality].cpu(), return_inverse=True)
        place = torch.randperm(len(unique))[row]
    held_out = place >= round((1 - own.held_out) * (int(place.max()) + 1))
    first, second = (train.take(part.nonzero().flatten()) for part in (~held_out, held_out))
    return first, second


def _candidates(
    problem: SearchProblem, space: MMnasSpace, likeliest: MMnasGenotype, supernet: Supernet
) -> Callable[[CostMeter], list[MMnasGenotype]]:
    """Return what finds the networks that short trainings compare."""
    probabilities = supernet.probabilities()

    def by_alpha(draw: Random) -> MMnasGenotype:
        pairs = zip(space.pools, probabilities, strict=True)
        return space.made([draw.choices(pool, weights)[0] for pool, weights in pairs])

    def found(meter: CostMeter) -> list[MMnasGenotype]:
        def judge(_: Sequence[MMnasGenotype]) -> Callable[[MMnasGenotype], float]:
            with meter.stage("screening"):
                return _judge(problem, space, supernet)

        first, ways = [likeliest, *space.cycles()], [by_alpha, space.sample]
        return screened(problem, first, ways, judge, meter)

    return found


def judging(count: int, match: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return which of ``count`` samples judge a network, at most 1,000.

    Of pairs, of which ``match`` (count,) says which do, there are two that do not for each that
    does, as in training: of a gallery few do.
    """
    chosen = torch.randperm(count, generator=generator)
    if match is not None:
        own = match[chosen]
        right = chosen[own][: SAMPLES // 3]
        chosen = torch.cat([right, chosen[~own][: 2 * len(right)]])
    return chosen[:SAMPLES]


@torch.no_grad()
def _judge(
    problem: SearchProblem, space: MMnasSpace, supernet: Supernet
) -> Callable[[MMnasGenotype], float]:
    """Return what says which loss a network has on validation with the weights of ``supernet``."""
    supernet.eval()
    validation = problem.validation.select(space.features)
    generator = torch.Generator().manual_seed(stage_seed(problem.seed, "screening"))
    match = validation.labels[:, 0] > 0 if problem.head.kind.PAIRS else None
    chosen = judging(len(validation), match, generator)
    batches = [
        (supernet.read(batch.inputs, batch.masks), batch.labels)
        for batch in iterate_batches(validation, chosen.split(_BATCH), problem.runtime.device)
    ]

    @torch.no_grad()
    def loss(genotype: MMnasGenotype) -> float:
        supernet.choose(operations_of(genotype))
        each = [(supernet.fuse(read), labels) for read, labels in batches]
        losses = [problem.head.loss(logits, labels) * len(labels) for logits, labels in each]
        return float(sum(losses)) / len(chosen)

    return loss
