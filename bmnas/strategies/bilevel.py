"""Algorithm 1 of BM-NAS: weights on train, architecture on validation, in turns (first order)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from bmnas.features.samples import (
    FeatureSamples,
    batches_per_epoch,
    epoch_batches,
    iterate_batches,
    samples_per_epoch,
)
from bmnas.machine.checkpoint import Record, Stateful
from bmnas.machine.cost_meter import COMPILE
from bmnas.machine.distribution.model import data_parallel
from bmnas.machine.distribution.ranks import mean
from bmnas.machine.distribution.share import shares, weighted
from bmnas.machine.profiling import profiled_step
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.cells.derive import derive_genotype
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.supernet import ArchitectureWeights, Supernet
from bmnas.spaces.cells.supernets import Supernets
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best
from bmnas.strategies.rerank import rerank
from bmnas.training.fit import require_finite_loss
from bmnas.training.metrics import Evaluation, evaluate

#: Logits of pooled features: (B, K) of one supernet, (S, B, K) of several.
Forward = Callable[[list[Tensor]], Tensor]

_ARCHITECTURE_BETAS = (0.5, 0.999)


class Pass(NamedTuple):
    """The mean losses of an epoch's two passes."""

    train: float
    architecture: float


def search_bilevel(problem: SearchProblem) -> Outcome[Genotype]:
    """Search by gradient descent on the relaxed architecture (BM-NAS, Algorithm 1).

    With ``config.rerank`` of 1 or more, the supernet's judgement and short trainings decide in the
    end, see ``rerank``. Raises UserError when the loss is no longer finite.
    """
    config = problem.config
    subject = _One(problem)
    best = best_record(relax(problem, subject))
    stages = stage_costs(problem)
    outcome = Outcome(
        genotype=problem.genotype(best["cells"]),
        best_epoch=best["epoch"],
        validation=best["validation_score"],
        candidates=1,
        samples_seen=stages["search_weights"].samples + stages["search_architecture"].samples,
        threshold=best.get("threshold"),
        seconds=problem.checkpoint.seconds,
        processor_seconds=problem.checkpoint.processor_seconds,
        stages=stages,
    )
    if config.rerank == 0:
        return outcome
    weights = ArchitectureWeights(best["alpha"], best["beta"], best["gamma"])
    return rerank(problem, outcome, weights, subject.network)


class Subject(Protocol):
    """What Algorithm 1 trains: one supernet, or several of one shape."""

    @property
    def network(self) -> Supernet | Supernets:
        """What is trained."""
        ...

    forward: Forward

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, or that of each supernet (S)."""
        ...

    def evaluate(self) -> list[Evaluation]:
        """Return how each supernet does on validation, in evaluation mode."""
        ...

    def record(
        self, passes: list[Pass], found: list[Evaluation], epoch: int, earlier: list[Record]
    ) -> Record:
        """Return the record of an epoch, its number and learning rate apart."""
        ...


class _One:
    """A single supernet."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self.network = initial_supernet(problem, problem.seed).to(problem.runtime.device)
        self.forward: Forward = problem.runtime.compiled(self.network, problem.steps)
        if problem.config.precision == "bfloat16":
            self.forward = _lowered(problem, self.forward)
        self.losses = problem.head.loss

    def evaluate(self) -> list[Evaluation]:
        problem = self._problem
        place = problem.head, problem.runtime.device
        return [evaluate(self.network, self.forward, problem.validation, *place)]

    def record(
        self, passes: list[Pass], found: list[Evaluation], epoch: int, earlier: list[Record]
    ) -> Record:
        weights = self.network.architecture_weights()
        return epoch_record(self._problem, "search", passes[0], found[0], weights, epoch, earlier)


def _lowered(problem: SearchProblem, forward: Forward) -> Forward:
    if problem.runtime.computes_bfloat16():
        return problem.runtime.lowered(forward)
    problem.progress.note("this processor has no products in bfloat16: going on in float32")
    return forward


def relax(problem: SearchProblem, subject: Subject) -> list[Record]:
    """Run Algorithm 1 and return a record of every epoch."""
    config = problem.config
    network = subject.network
    weights, architecture = network.weight_parameters(), network.architecture_parameters()
    on_weights = torch.optim.Adam(
        weights, lr=config.max_lr, weight_decay=config.weight_decay, fused=True
    )
    on_architecture = torch.optim.Adam(
        architecture,
        lr=config.arch_lr,
        betas=_ARCHITECTURE_BETAS,
        weight_decay=config.arch_weight_decay,
    )
    steps = config.epochs * batches_per_epoch(len(problem.train), config.batch_size)
    schedule = CosineAnnealingLR(on_weights, T_max=steps, eta_min=config.min_lr)
    parts: dict[str, Stateful] = {
        "supernet": network,
        "weights": on_weights,
        "architecture": on_architecture,
        "schedule": schedule,
    }
    records = problem.checkpoint.restore(parts)
    on_train, on_validation = (data_parallel(p, subject.forward) for p in (weights, architecture))
    losses, spent = subject.losses, problem.checkpoint.spent
    with problem.progress.stage("search", config.epochs) as shown, _recording(problem, records):
        shown.advance(len(records))
        for epoch in range(len(records) + 1, config.epochs + 1):
            rate = schedule.get_last_lr()[0]
            network.train()
            _require_gradients(weights, architecture)
            with spent.stage("search_weights"):
                on_weights_loss = _descend(
                    problem, problem.train, on_train, losses, on_weights, schedule
                )
            _require_gradients(architecture, weights)
            with spent.stage("search_architecture"):
                on_architecture_loss = _descend(
                    problem, problem.validation, on_validation, losses, on_architecture
                )
            with spent.stage("validation"):
                found = subject.evaluate()
            if problem.recorder is not None:
                problem.recorder.write()
            passes = list(map(Pass, on_weights_loss, on_architecture_loss))
            own = subject.record(passes, found, epoch, records)
            records.append({"epoch": epoch, "learning_rate": rate, **own})
            problem.checkpoint.save(parts, records)
            shown.message(
                f"loss {own['train_loss']:.3f}  "
                f"validation {problem.head.metric} {own['validation_score']:.3f}"
            )
            shown.advance()
    return records


def epoch_record(
    problem: SearchProblem,
    stage: str,
    losses: Pass,
    found: Evaluation,
    weights: ArchitectureWeights,
    epoch: int,
    earlier: list[Record],
) -> Record:
    """Return what a record says of one supernet after an epoch, ``earlier`` being its own.

    Raises UserError, which names the ``stage``, when a loss is no longer finite.
    """
    record = {
        "train_loss": require_finite_loss(losses.train, stage, epoch),
        "architecture_loss": require_finite_loss(losses.architecture, stage, epoch),
        "validation_loss": require_finite_loss(found.loss, stage, epoch),
        "validation_score": found.score,
        "best": is_best(found.score, earlier),
        **_derived(problem, weights),
    }
    if record["best"]:
        record |= problem.threshold(found.logits)
    return record


def stage_costs(problem: SearchProblem) -> dict[str, StageCost]:
    """Return what the epochs have cost by stage, compilation apart; each seed's samples count."""
    config, seconds = problem.config, problem.checkpoint.spent.seconds
    samples = {
        COMPILE: 0,
        "search_weights": samples_per_epoch(len(problem.train), config.batch_size),
        "search_architecture": samples_per_epoch(len(problem.validation), config.batch_size),
        "validation": len(problem.validation),
    }
    return {
        name: StageCost(seconds.get(name, 0.0), problem.seeds * config.epochs * count)
        for name, count in samples.items()
    }


def _recording(
    problem: SearchProblem, records: list[Record]
) -> contextlib.AbstractContextManager[None]:
    if problem.recorder is None:
        return contextlib.nullcontext()
    steps = (
        batches_per_epoch(len(samples), problem.config.batch_size)
        for samples in (problem.train, problem.validation)
    )
    return problem.recorder.recording(problem.config.epochs - len(records), *steps)


def initial_supernet(problem: SearchProblem, seed: int) -> Supernet:
    """Return the supernet that a search with ``seed`` begins with, on the CPU."""
    config = problem.config
    seed_stage(seed, "search")
    return Supernet(
        list(problem.train.channels.values()),
        cells=config.cells,
        steps=config.steps,
        channels=config.channels,
        length=config.length,
        classes=problem.classes,
        dropout=config.dropout,
    )


def _derived(problem: SearchProblem, weights: ArchitectureWeights) -> Record:
    """Return what a record says of the architecture: the relaxed weights, the derived Cells."""
    relaxed = asdict(weights)
    genotype = derive_genotype(
        **relaxed,
        features=problem.train.names,
        channels=problem.config.channels,
        length=problem.config.length,
    )
    return {**relaxed, "cells": genotype.to_dict()["cells"]}


def _descend(
    problem: SearchProblem,
    samples: FeatureSamples,
    forward: Forward,
    losses: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: CosineAnnealingLR | None = None,
) -> list[float]:
    """Make one pass over ``samples`` and return its mean loss, of each supernet."""
    device = problem.runtime.device
    step = "weights step" if samples is problem.train else "architecture step"
    total, batches = torch.zeros((), device=device), 0
    order = shares(epoch_batches(len(samples), problem.config.batch_size))
    for batch in iterate_batches(samples, order, device):
        with profiled_step(problem.recorder, step):
            logits = forward(*batch.arguments)
            loss = weighted(losses(logits, batch.labels))
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total = total + loss.detach()
        batches += 1
    # The device synchronises here, once a pass.
    return [value / batches for value in mean(total).reshape(-1).tolist()]


def _require_gradients(yes: list[nn.Parameter], no: list[nn.Parameter]) -> None:
    # The gradients of what a pass does not train would be computed for nothing.
    for parameter in yes:
        parameter.requires_grad_(True)
    for parameter in no:
        parameter.requires_grad_(False)
