"""Reranking: short trainings decide between what Algorithm 1 derived and what it nearly did."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import cycle
from random import Random
from typing import Any

import torch

from bmnas.features.samples import samples_per_epoch
from bmnas.machine.cost_meter import Spent
from bmnas.machine.distribution.ranks import alone, mean
from bmnas.machine.runtime import seed_stage, stage_seed
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.one_shot import OneShot, SinglePath
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.cells.supernet import ArchitectureWeights, Supernet
from bmnas.strategies.candidates import (
    candidate_recipe,
    train_candidate,
)
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best
from bmnas.training.fit import Group, fit

#: Networks that the supernet judges. With half as many, searches on easy-vqa saw too few that
#: multiply; on av-digits, in simulation, half and twice as many do as well.
SCREENED = 400
_DRAWS = 100  # for each genotype wanted; a small search space may not have as many


def rerank(
    problem: SearchProblem,
    derived: Outcome[Genotype],
    weights: ArchitectureWeights,
    supernet: Supernet,
    rivals: Sequence[Genotype] = (),
) -> Outcome[Genotype]:
    """Return the best on validation of the ``derived`` genotype and ``config.rerank`` others.

    The supernet's own score says little about the network that is derived from it: its weights
    rank features by how much a little more of each would help, and can single out one modality
    while the supernet goes on using all. So ``SCREENED`` networks are drawn, by turns from the
    relaxed ``weights`` and with even choices. The ``supernet`` is trained on for
    ``config.candidate_epochs``, as another one of them at each step, and judges them with its
    weights, see ``one_shot``; the best are trained for as many epochs. ``rivals`` come before
    those. No network is trained twice. The result's ``validation`` and ``threshold`` are those of
    the winner's short training, ``best_epoch`` stays.
    """
    config = problem.config
    checkpoint, wanted = problem.candidates(), _Wanted()
    parts = {"wanted": wanted}
    records = checkpoint.restore(parts)
    spent = checkpoint.spent
    if not wanted.cells:
        first = [derived.genotype, *rivals]
        found = _candidates(problem, first, weights, supernet, spent)
        wanted.cells = [genotype.to_dict()["cells"] for genotype in found]
        checkpoint.save(parts, records)
    genotypes = [problem.genotype(cells) for cells in wanted.cells]
    with problem.progress.stage("reranking", len(genotypes)) as shown:
        shown.advance(len(records))
        for number in range(len(records) + 1, len(genotypes) + 1):
            with spent.stage("rerank"):
                trained = train_candidate(problem, genotypes[number - 1], number)
            best = is_best(trained["validation_score"], records)
            records.append({"candidate": number, **trained, "best": best})
            checkpoint.save(parts, records)
            shown.message(f"validation {problem.head.metric} {trained['validation_score']:.3f}")
            shown.advance()
    winner = best_record(records)
    an_epoch = samples_per_epoch(len(problem.train), config.batch_size)
    each = config.candidate_epochs * an_epoch
    seconds = spent.seconds
    stages = {}
    if "single_networks" in seconds:
        stages["single_networks"] = StageCost(seconds["single_networks"], each)
        stages["screening"] = StageCost(seconds["screening"], 0)
    stages["rerank"] = StageCost(seconds["rerank"], len(genotypes) * each)
    return dataclasses.replace(
        derived,
        genotype=problem.genotype(winner["cells"]),
        validation=winner["validation_score"],
        candidates=len(genotypes),
        samples_seen=derived.samples_seen + sum(stage.samples for stage in stages.values()),
        stages={**derived.stages, **stages},
        threshold=winner.get("threshold"),
        seconds=derived.seconds + checkpoint.seconds,
        processor_seconds=derived.processor_seconds + checkpoint.processor_seconds,
    )


class _Wanted:
    """The Cells of the genotypes that are compared, in the form of a genotype's file.

    A checkpoint keeps them: on another machine, which rounds otherwise, a supernet that is trained
    again would choose others.
    """

    def __init__(self) -> None:
        self.cells: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"cells": json.dumps(self.cells)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.cells = json.loads(state_dict["cells"])


def train_single_networks(
    problem: SearchProblem, genotypes: Sequence[Genotype], supernet: Supernet
) -> None:
    """Train the weights of ``supernet`` on, each step those of another one of ``genotypes``.

    As long as a candidate is trained. Raises UserError when the loss is no longer finite.
    """
    weights = supernet.weight_parameters()
    for parameter in weights:
        parameter.requires_grad_(True)
    seed_stage(problem.seed, "single networks")
    order = Random(f"{problem.seed} single networks").sample(list(genotypes), len(genotypes))
    networks = SinglePath(supernet, order)
    # Each step has gradients of other weights, which the ranks' common gradients are not made for.
    with alone():
        fit(
            networks,
            networks,
            [Group(weights, problem.config.max_lr)],
            problem.train,
            problem.head,
            candidate_recipe(problem.config),
            device=problem.runtime.device,
            checkpoint=None,
            progress=problem.progress,
            stage="single networks",
        )


def _candidates(
    problem: SearchProblem,
    first: Sequence[Genotype],
    weights: ArchitectureWeights,
    supernet: Supernet,
    spent: Spent,
) -> list[Genotype]:
    """Return ``config.rerank`` + 1 genotypes: ``first``, then the best of ``SCREENED``."""
    count = problem.config.rerank + 1
    chosen: dict[str, Genotype] = {}
    for genotype in first:
        chosen.setdefault(CellSpace.canonical(genotype), genotype)
    wanted = max(0, count - len(chosen))
    drawn = _drawn(problem, set(chosen), weights, max(wanted, SCREENED)) if wanted else []
    if len(drawn) > wanted:
        with spent.stage("single_networks"):
            train_single_networks(problem, drawn, supernet)
        with spent.stage("screening"):
            losses = _losses(problem, drawn, supernet)
        # sorted() keeps the order of draws among equals.
        drawn = [drawn[n] for n in sorted(range(len(drawn)), key=losses.__getitem__)]
    return [*chosen.values(), *drawn][:count]


def _losses(
    problem: SearchProblem, genotypes: Sequence[Genotype], supernet: Supernet
) -> list[float]:
    device = problem.runtime.device
    with problem.progress.stage("screening", len(genotypes)) as shown:
        seed = stage_seed(problem.seed, "screening")
        one_shot = OneShot(supernet, problem.validation, problem.head, device, seed)
        losses = []
        for genotype in genotypes:
            losses.append(one_shot.loss(genotype))
            shown.advance()
    # Of several ranks, which may round otherwise, all must train the same.
    agreed: list[float] = mean(torch.tensor(losses, device=device)).tolist()
    return agreed


def _drawn(
    problem: SearchProblem, known: set[str], weights: ArchitectureWeights, wanted: int
) -> list[Genotype]:
    """Return up to ``wanted`` genotypes of different networks that are not ``known``."""
    draw, space = Random(f"{problem.seed} rerank"), problem.cells
    by_turns = cycle((True, False))
    drawn: list[Genotype] = []
    for _ in range(_DRAWS * wanted):
        if len(drawn) == wanted:
            break
        relaxed = next(by_turns)
        genotype = space.sample_from(weights, draw) if relaxed else space.sample(draw)
        network = CellSpace.canonical(genotype)
        if network not in known:
            known.add(network)
            drawn.append(genotype)
    return drawn
