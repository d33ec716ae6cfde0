"""Algorithm 1 of BM-NAS: weights on train, architecture on validation, in turns (first order)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

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
from bmnas.machine.costs import COMPILE
from bmnas.machine.distributed import data_parallel, mean, split_batches
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.cells.derive import derive_genotype
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best
from bmnas.strategies.rerank import rerank
from bmnas.training.fit import require_finite_loss
from bmnas.training.metrics import evaluate

#: Logits (B, K) of pooled features.
Forward = Callable[[list[Tensor]], Tensor]

_ARCHITECTURE_BETAS = (0.5, 0.999)


def search_bilevel(problem: SearchProblem) -> Outcome[Genotype]:
    """Search by gradient descent on the relaxed architecture (BM-NAS, Algorithm 1).

    With ``config.rerank`` of 1 or more, the supernet's judgement and short trainings decide in the
    end, see ``rerank``. Raises UserError when the loss is no longer finite.
    """
    records, supernet = relax(problem)
    best, stages = best_record(records), stage_costs(problem)
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
    if problem.config.rerank == 0:
        return outcome
    return rerank(problem, outcome, supernet)


def relax(problem: SearchProblem, name: str = "search") -> tuple[list[Record], Supernet]:
    """Run Algorithm 1; return a record of every epoch, and the supernet.

    Errors call the search by ``name``.
    """
    config, meter = problem.config, problem.checkpoint.meter
    supernet = initial_supernet(problem).to(problem.runtime.device)
    forward = _forward(problem, supernet)
    weights, architecture = supernet.weight_parameters(), supernet.architecture_parameters()
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
        "supernet": supernet,
        "weights": on_weights,
        "architecture": on_architecture,
        "schedule": schedule,
    }
    records = problem.checkpoint.restore(parts)
    train_forward, validation_forward = (
        data_parallel(supernet, p, forward) for p in (weights, architecture)
    )
    with problem.progress.stage(name, config.epochs) as shown:
        shown.advance(len(records))
        for epoch in range(len(records) + 1, config.epochs + 1):
            record: Record = {"epoch": epoch, "learning_rate": schedule.get_last_lr()[0]}
            supernet.train()
            _require_gradients(weights, architecture)
            with meter.stage("search_weights"):
                loss = _descend(problem, problem.train, train_forward, on_weights, schedule)
            _require_gradients(architecture, weights)
            with meter.stage("search_architecture"):
                other = _descend(problem, problem.validation, validation_forward, on_architecture)
            with meter.stage("validation"):
                place = problem.head, problem.runtime.device
                found = evaluate(supernet, forward, problem.validation, *place)
            record |= {
                "train_loss": require_finite_loss(loss, name, epoch),
                "architecture_loss": require_finite_loss(other, name, epoch),
                "validation_loss": require_finite_loss(found.loss, name, epoch),
                "validation_score": found.score,
                "best": is_best(found.score, records),
                **_derived(problem, supernet),
            }
            if record["best"]:
                record |= problem.threshold(found.logits)
            records.append(record)
            problem.checkpoint.save(parts, records)
            shown.message(f"loss {loss:.3f}  validation {problem.head.metric} {found.score:.3f}")
            shown.advance()
    return records, supernet


def stage_costs(problem: SearchProblem) -> dict[str, StageCost]:
    """Return what the epochs have cost by stage, compilation apart; each seed's samples count."""
    config, seconds = problem.config, problem.checkpoint.meter.seconds
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


def initial_supernet(problem: SearchProblem) -> Supernet:
    """Return the supernet that a search begins with, on the CPU."""
    seed_stage(problem.seed, "search")
    return problem.cells.supernet(
        list(problem.train.channels.values()),
        classes=problem.classes,
        dropout=problem.config.dropout,
    )


def _forward(problem: SearchProblem, supernet: Supernet) -> Forward:
    """Return what runs ``supernet``: compiled and in mixed precision where that is wanted."""
    forward: Forward = problem.runtime.compiled(supernet, problem.steps)
    if problem.config.precision != "bfloat16":
        return forward
    if problem.runtime.computes_bfloat16():
        return problem.runtime.autocast(forward)
    problem.progress.note("this processor has no products in bfloat16: going on in float32")
    return forward


def _derived(problem: SearchProblem, supernet: Supernet) -> Record:
    """Return what a record says of the architecture: the relaxed weights, the derived Cells."""
    relaxed = asdict(supernet.architecture_weights())
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
    optimizer: torch.optim.Optimizer,
    schedule: CosineAnnealingLR | None = None,
) -> float:
    """Make one pass over ``samples`` and return its mean loss."""
    device = problem.runtime.device
    total, batches = torch.zeros((), device=device), 0
    order = split_batches(epoch_batches(len(samples), problem.config.batch_size))
    for batch in iterate_batches(samples, order, device):
        loss = problem.head.loss(forward(*batch.arguments), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        total = total + loss.detach()
        batches += 1
    # The device synchronises here, once a pass.
    return float(mean(total)) / batches


def _require_gradients(yes: list[nn.Parameter], no: list[nn.Parameter]) -> None:
    # The gradients of what a pass does not train would be computed for nothing.
    for parameter in yes:
        parameter.requires_grad_(True)
    for parameter in no:
        parameter.requires_grad_(False)
