"""Algorithm 1 of BM-NAS: weights on train, architecture on validation, in turns (first order).

Several seeds share backbones and feature cache, and run side by side on a CPU's cores, else one
after another. What a seed finds is what a search with that seed alone finds with as many threads;
each has a checkpoint of its own, so a search that was stopped goes on where every seed was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from bmnas.features.samples import (
    batches_per_epoch,
    samples_per_epoch,
)
from bmnas.machine.checkpoint import Checkpoint, Record, Stateful
from bmnas.machine.costs import COMPILE
from bmnas.machine.distributed import data_parallel, world_size
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import cores, seed_stage, worker_pool
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.derive import derive_genotype
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.operations import added_operations, register_all
from bmnas.spaces.cells.supernet import Supernet
from bmnas.spaces.ensembles.space import Ensemble
from bmnas.strategies.problem import Member, Outcome, SearchProblem, StageCost, best_record, is_best
from bmnas.strategies.rerank import rerank
from bmnas.training.fit import descend, loss_of_logits, require_finite_loss
from bmnas.training.metrics import evaluate

#: Logits (B, K) of pooled features.
Forward = Callable[[list[Tensor]], Tensor]

_ARCHITECTURE_BETAS = (0.5, 0.999)
_LOSSES = ("train_loss", "architecture_loss", "validation_loss")


def search_bilevel(problem: SearchProblem) -> Outcome[Genotype]:
    """Search by gradient descent on the relaxed architecture (BM-NAS, Algorithm 1).

    With several ``problem.seeds`` the member with the highest validation score counts, of equals
    the lowest seed. With ``config.rerank`` of 1 or more, short trainings decide in the end, see
    ``rerank``: they compare that member's genotype with the others', the best first, and with
    genotypes that its supernet suggests. Raises UserError when a loss is no longer finite.
    """
    members: tuple[Member, ...] = ()
    if problem.seeds == 1:
        records, supernet = relax(problem)
        ranked = [_member(problem, problem.seed, records)]
    else:
        members, supernet = _relax_several(problem)
        # sorted() keeps the order of seeds among equals.
        ranked = sorted(members, key=lambda member: -member.validation)
    first, stages = ranked[0], _stage_costs(problem)
    outcome = Outcome(
        genotype=first.genotype,
        best_epoch=first.best_epoch,
        validation=first.validation,
        candidates=problem.seeds,
        samples_seen=stages["search_weights"].samples + stages["search_architecture"].samples,
        threshold=first.threshold,
        seconds=problem.checkpoint.seconds,
        processor_seconds=problem.checkpoint.processor_seconds,
        stages=stages,
        seed=first.seed if members else None,
        members=members,
    )
    if problem.config.rerank == 0:
        return outcome
    outcome = rerank(problem, outcome, supernet, [member.genotype for member in ranked[1:]])
    if not members:
        return outcome
    found: Architecture = outcome.genotype
    best = found.networks[0] if isinstance(found, Ensemble) else found
    found_by = next((m for m in ranked if m.genotype == best), first)
    return dataclasses.replace(outcome, seed=found_by.seed, best_epoch=found_by.best_epoch)


def relax(problem: SearchProblem, name: str = "search") -> tuple[list[Record], Supernet]:
    """Run Algorithm 1; return a record of every epoch, and the supernet.

    Errors call the search by ``name``.
    """
    config, meter = problem.config, problem.checkpoint.meter
    supernet = _initial_supernet(problem)
    forward = _forward(problem, supernet)
    weights, architecture = supernet.weight_parameters(), supernet.architecture_parameters()
    on_weights = torch.optim.Adam(
        weights, lr=config.max_lr, weight_decay=config.weight_decay, fused=True
    )
    on_architecture = torch.optim.Adam(
        architecture, config.arch_lr, _ARCHITECTURE_BETAS, weight_decay=config.arch_weight_decay
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
    size, minimised = config.batch_size, loss_of_logits(problem.head)
    on_train, on_validation = (data_parallel(supernet, p, forward) for p in (weights, architecture))
    with problem.progress.stage(name, config.epochs) as shown:
        shown.advance(len(records))
        for epoch in range(len(records) + 1, config.epochs + 1):
            rate = schedule.get_last_lr()[0]
            supernet.train()
            _require_gradients(weights, architecture)
            with meter.stage("search_weights"):
                loss = descend(on_train, problem.train, size, minimised, on_weights, schedule)
            _require_gradients(architecture, weights)
            with meter.stage("search_architecture"):
                other = descend(on_validation, problem.validation, size, minimised, on_architecture)
            with meter.stage("validation"):
                place = problem.head, problem.runtime.device
                found = evaluate(supernet, forward, problem.validation, *place)
            losses = [require_finite_loss(x, name, epoch) for x in (loss, other, found.loss)]
            record: Record = {
                "epoch": epoch,
                "learning_rate": rate,
                **dict(zip(_LOSSES, losses, strict=True)),
                "validation_score": found.score,
                "best": is_best(found.score, records),
                **_derived(problem, supernet),
            }
            if record["best"]:
                record |= problem.threshold(found.logits)
            records.append(record)
            if epoch == config.epochs or problem.checkpoint.due:
                problem.checkpoint.save(parts, records)
            shown.message(f"loss {loss:.3f}  validation {problem.head.metric} {found.score:.3f}")
            shown.advance()
    return records, supernet


def _stage_costs(problem: SearchProblem) -> dict[str, StageCost]:
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


def _initial_supernet(problem: SearchProblem) -> Supernet:
    seed_stage(problem.seed, "search")
    supernet = problem.cells.supernet(
        list(problem.train.channels.values()),
        classes=problem.classes,
        dropout=problem.config.dropout,
    )
    return supernet.to(problem.runtime.device)


def _forward(problem: SearchProblem, supernet: Supernet) -> Forward:
    """Return what runs ``supernet``: compiled and in mixed precision where that is wanted."""
    forward: Forward = problem.runtime.compiled(supernet, problem.steps)
    return problem.runtime.mixed(forward, problem.config.precision, problem.progress)


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


def _require_gradients(yes: list[nn.Parameter], no: list[nn.Parameter]) -> None:
    # The gradients of what a pass does not train would be computed for nothing.
    for parameter in yes:
        parameter.requires_grad_(True)
    for parameter in no:
        parameter.requires_grad_(False)


def _member(problem: SearchProblem, seed: int, records: Sequence[Record]) -> Member:
    best = best_record(records)
    return Member(
        seed=seed,
        genotype=problem.genotype(best["cells"]),
        best_epoch=best["epoch"],
        validation=best["validation_score"],
        threshold=best.get("threshold"),
    )


def _relax_several(problem: SearchProblem) -> tuple[tuple[Member, ...], Supernet]:
    """Run Algorithm 1 with every seed; return what each found, and the best one's supernet."""
    seeds = range(problem.seed, problem.seed + problem.seeds)
    supernet = _initial_supernet(problem)
    parts: dict[str, Stateful] = {"supernet": supernet}
    records = problem.checkpoint.restore(parts)
    if not records:
        problem.checkpoint.save(parts, [])  # from now on there is something to resume
        _run_side_by_side(problem, seeds, parts)
        searches = {seed: _of_seed(problem, seed) for seed in seeds}
        histories: dict[int, list[Record]] = {}
        highest = float("-inf")
        for seed, search in searches.items():
            # Every epoch is there already: this reads them, and the supernet of the best.
            histories[seed], found = relax(search)
            score = best_record(histories[seed])["validation_score"]
            if score > highest:
                highest = score
                supernet.load_state_dict(found.state_dict())
        problem.checkpoint.add_parts(search.checkpoint for search in searches.values())
        records = _merged(histories)
        problem.checkpoint.save(parts, records)
    for seed in seeds:
        _of_seed(problem, seed).checkpoint.remove()
    members = [
        _member(problem, seed, [record["members"][number] for record in records])
        for number, seed in enumerate(seeds)
    ]
    return tuple(members), supernet


def _run_side_by_side(problem: SearchProblem, seeds: range, parts: Mapping[str, Stateful]) -> None:
    """Run the search of each of ``seeds``; what it found is then in its checkpoint."""
    with problem.progress.stage(f"search of {len(seeds)} seeds", len(seeds)) as shown:

        def done(seed: int) -> None:
            shown.message(f"seed {seed} is done")
            shown.advance()
            problem.checkpoint.save(parts, [])  # for the time that it took so far

        workers = min(len(seeds), cores()) if problem.runtime.device.type == "cpu" else 1
        if world_size() > 1 or workers == 1:
            for seed in seeds:
                _relax_seed(_of_seed(problem, seed))
                done(seed)
            return
        with worker_pool(workers, register_all, added_operations()) as pool:
            running = {pool.submit(_relax_seed, _of_seed(problem, seed)): seed for seed in seeds}
            for future in as_completed(running):
                future.result()
                done(running[future])


def _of_seed(problem: SearchProblem, seed: int) -> SearchProblem:
    """Return the search with ``seed`` alone, without short trainings; it can go to a process."""
    return dataclasses.replace(
        problem,
        seed=seed,
        seeds=1,
        checkpoint=problem.checkpoint.of_part(f"seed-{seed}"),
        candidates=_no_candidates,
        aim=None,
        progress=Progress(),
    )


def _no_candidates() -> Checkpoint:
    raise RuntimeError("a member trains no candidates: the search of all seeds does")


def _relax_seed(search: SearchProblem) -> None:
    relax(search, f"search, seed {search.seed}")


def _merged(histories: dict[int, list[Record]]) -> list[Record]:
    """Return a record of each epoch with all members' own and the means of their numbers."""
    records: list[Record] = []
    for epoch, own in enumerate(zip(*histories.values(), strict=True), start=1):
        means = {
            name: fmean(record[name] for record in own) for name in (*_LOSSES, "validation_score")
        }
        records.append(
            {
                "epoch": epoch,
                "learning_rate": own[0]["learning_rate"],
                **means,
                "best": is_best(means["validation_score"], records),
                "members": [
                    {"seed": seed, **record} for seed, record in zip(histories, own, strict=True)
                ],
            }
        )
    return records
