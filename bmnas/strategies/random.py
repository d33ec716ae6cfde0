"""Random search: candidates drawn evenly, each trained for a few epochs, the best one kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from random import Random

from bmnas.checkpoint import Record, Stateful
from bmnas.config import SearchConfig
from bmnas.fit import Group, Recipe, fit
from bmnas.genotype import PRIMITIVES, Cell, Genotype, Step
from bmnas.metrics import best_threshold, evaluate
from bmnas.network import FusionNetwork
from bmnas.progress import Silent
from bmnas.runtime import seed_stage
from bmnas.samples import samples_per_epoch
from bmnas.strategies.problem import Outcome, SearchProblem, best_record, is_best

_NO_PARTS: dict[str, Stateful] = {}


def search_random(problem: SearchProblem) -> Outcome:
    """Train ``config.candidates`` random genotypes for ``config.candidate_epochs`` epochs each.

    Raises UserError when a loss is no longer finite.
    """
    config = problem.config
    draw = Random(problem.seed)
    features = problem.train.names
    genotypes = [random_genotype(features, config, draw) for _ in range(config.candidates)]
    # A candidate depends on nothing but its number, so the records are the whole state.
    records = problem.checkpoint.restore(_NO_PARTS)
    with problem.progress.stage("random search", config.candidates) as shown:
        shown.advance(len(records))
        for number in range(len(records) + 1, config.candidates + 1):
            record = _try(problem, genotypes[number - 1], number)
            record["best"] = is_best(record["validation_score"], records)
            records.append(record)
            problem.checkpoint.save(_NO_PARTS, records)
            shown.message(f"validation {problem.objective.metric} {record['validation_score']:.3f}")
            shown.advance()
    best = best_record(records)
    seen = config.candidate_epochs * samples_per_epoch(len(problem.train), config.batch_size)
    return Outcome(
        genotype=problem.genotype(best["cells"]),
        best_epoch=best["epoch"],
        validation=best["validation_score"],
        candidates=config.candidates,
        samples_seen=config.candidates * seen,
        threshold=best.get("threshold"),
    )


def random_genotype(features: Sequence[str], config: SearchConfig, draw: Random) -> Genotype:
    """Return a genotype over ``features``, each choice drawn evenly from those of a derivation.

    One whose network would read a single feature is drawn again.
    """
    while True:
        genotype = Genotype(
            tuple(features), config.channels, config.length, _cells(features, config, draw)
        )
        if len(genotype.live_features()) > 1:
            return genotype


def _cells(features: Sequence[str], config: SearchConfig, draw: Random) -> tuple[Cell, ...]:
    nodes = list(features)
    taken: set[str] = set()
    cells = []
    for k in range(config.cells):
        pairs = [pair for pair in combinations(nodes, 2) if not taken.issuperset(pair)]
        x, y = draw.choice(pairs)
        cells.append(Cell((x, y), tuple(_step(m, draw) for m in range(config.steps))))
        taken.update((x, y))
        nodes.append(f"cell{k + 1}")
    return tuple(cells)


def _step(earlier: int, draw: Random) -> Step:
    nodes = ["x", "y", *(f"step{m + 1}" for m in range(earlier))]
    first, second = draw.sample(nodes, 2)
    return Step(draw.choice(PRIMITIVES), (first, second))


def _try(problem: SearchProblem, genotype: Genotype, number: int) -> Record:
    config, device = problem.config, problem.runtime.device
    seed_stage(problem.seed, f"candidate {number}")
    network = FusionNetwork(
        genotype, problem.train.channels, classes=problem.classes, dropout=config.dropout
    ).to(device)
    train = problem.train.select(network.features)
    validation = problem.validation.select(network.features)
    recipe = Recipe(config.candidate_epochs, config.batch_size, config.min_lr, config.weight_decay)
    losses = fit(
        network,
        network,
        [Group(list(network.parameters()), config.max_lr)],
        train,
        problem.objective,
        recipe,
        device=device,
        checkpoint=None,
        progress=Silent(),
        stage=f"candidate {number}",
    )
    found = evaluate(network, network, validation, problem.objective, device)
    record: Record = {
        "epoch": number,
        "train_loss": losses[-1]["train_loss"],
        "validation_loss": found.loss,
        "validation_score": found.score,
        "cells": genotype.to_dict()["cells"],
    }
    if problem.objective.kind == "multilabel":
        record["threshold"] = best_threshold(found.logits, validation.labels)
    return record
