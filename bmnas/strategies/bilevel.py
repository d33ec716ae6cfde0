"""Algorithm 1 of BM-NAS: weights on train, architecture on validation, in turns (first order)."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from bmnas.checkpoint import Record, Stateful
from bmnas.derive import derive_genotype
from bmnas.fit import Forward, require_finite_loss
from bmnas.genotype import Genotype
from bmnas.metrics import best_threshold, evaluate
from bmnas.parallel.model import data_parallel
from bmnas.parallel.ranks import mean
from bmnas.parallel.share import shares, weighted
from bmnas.profiling import profiled_step
from bmnas.runtime import seed_stage
from bmnas.samples import (
    FeatureSamples,
    batches_per_epoch,
    epoch_batches,
    fed,
    samples_per_epoch,
)
from bmnas.spent import COMPILE
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best
from bmnas.strategies.rerank import rerank
from bmnas.supernet import ArchitectureWeights, Supernet

_ARCHITECTURE_BETAS = (0.5, 0.999)


def search_bilevel(problem: SearchProblem) -> Outcome[Genotype]:
    """Search by gradient descent on the relaxed architecture (BM-NAS, Algorithm 1).

    With ``config.rerank`` of 1 or more, short trainings of that many genotypes decide in the end,
    see ``rerank``. Raises UserError when the loss is no longer finite.
    """
    config = problem.config
    best = best_record(_relax(problem))
    stages = _stages(problem)
    outcome = Outcome(
        genotype=problem.genotype(best["cells"]),
        best_epoch=best["epoch"],
        validation=best["validation_score"],
        candidates=1,
        samples_seen=stages["search_weights"].samples + stages["search_architecture"].samples,
        threshold=best.get("threshold"),
        seconds=problem.checkpoint.seconds,
        stages=stages,
    )
    if config.rerank == 0:
        return outcome
    weights = ArchitectureWeights(best["alpha"], best["beta"], best["gamma"])
    return rerank(problem, outcome, weights)


def _relax(problem: SearchProblem) -> list[Record]:
    """Run Algorithm 1 and return a record of every epoch."""
    config, device = problem.config, problem.runtime.device
    seed_stage(problem.seed, "search")
    supernet = _supernet(problem).to(device)
    forward = problem.runtime.compiled(supernet)
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
    on_train, on_validation = (data_parallel(p, forward) for p in (weights, architecture))
    spent = problem.checkpoint.spent
    with problem.progress.stage("search", config.epochs) as shown, _recording(problem, records):
        shown.advance(len(records))
        for epoch in range(len(records) + 1, config.epochs + 1):
            rate = schedule.get_last_lr()[0]
            supernet.train()
            _require_gradients(weights, architecture)
            with spent.stage("search_weights"):
                train_loss = _descend(problem, problem.train, on_train, on_weights, schedule)
            _require_gradients(architecture, weights)
            with spent.stage("search_architecture"):
                architecture_loss = _descend(
                    problem, problem.validation, on_validation, on_architecture
                )
            with spent.stage("validation"):
                found = evaluate(supernet, forward, problem.validation, problem.objective, device)
            if problem.recorder is not None:
                problem.recorder.write()
            record = {
                "epoch": epoch,
                "learning_rate": rate,
                "train_loss": require_finite_loss(train_loss, "search", epoch),
                "architecture_loss": require_finite_loss(architecture_loss, "search", epoch),
                "validation_loss": require_finite_loss(found.loss, "search", epoch),
                "validation_score": found.score,
                "best": is_best(found.score, records),
                **_derived(problem, supernet.architecture_weights()),
            }
            if record["best"] and problem.objective.kind == "multilabel":
                record["threshold"] = best_threshold(found.logits, problem.validation.labels)
            records.append(record)
            problem.checkpoint.save(parts, records)
            shown.message(
                f"loss {train_loss:.3f}  validation {problem.objective.metric} {found.score:.3f}"
            )
            shown.advance()
    return records


def _stages(problem: SearchProblem) -> dict[str, StageCost]:
    """Return what the epochs have cost by stage, compilation apart."""
    config, seconds = problem.config, problem.checkpoint.spent.seconds
    samples = {
        COMPILE: 0,
        "search_weights": samples_per_epoch(len(problem.train), config.batch_size),
        "search_architecture": samples_per_epoch(len(problem.validation), config.batch_size),
        "validation": len(problem.validation),
    }
    return {
        name: StageCost(seconds.get(name, 0.0), config.epochs * count)
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


def _supernet(problem: SearchProblem) -> Supernet:
    config = problem.config
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
    optimizer: torch.optim.Optimizer,
    schedule: CosineAnnealingLR | None = None,
) -> float:
    """Make one pass over ``samples`` and return its mean loss."""
    objective, device = problem.objective, problem.runtime.device
    step = "weights step" if samples is problem.train else "architecture step"
    total, batches = torch.zeros((), device=device), 0
    order = shares(epoch_batches(len(samples), problem.config.batch_size))
    for features, labels in fed(samples, order, device):
        with profiled_step(problem.recorder, step):
            logits = forward(features)
            loss = weighted(objective.loss(logits, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += loss.detach()
        batches += 1
    # The device synchronises here, once a pass.
    return float(mean(total)) / batches


def _require_gradients(yes: list[nn.Parameter], no: list[nn.Parameter]) -> None:
    # The gradients of what a pass does not train would be computed for nothing.
    for parameter in yes:
        parameter.requires_grad_(True)
    for parameter in no:
        parameter.requires_grad_(False)
