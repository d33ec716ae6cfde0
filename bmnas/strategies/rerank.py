"""Reranking: short trainings decide between what Algorithm 1 derived and what it nearly did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import cycle
from random import Random

from bmnas.canonical import canonical
from bmnas.genotype import Genotype
from bmnas.one_shot import OneShot
from bmnas.samples import samples_per_epoch
from bmnas.strategies.candidates import draw_genotype, even_weights, train_candidate
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best
from bmnas.supernet import ArchitectureWeights, Supernet

#: Networks that the supernet judges; twice or half as many find no better ones on av-digits.
SCREENED = 200
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
    relaxed ``weights`` and with even choices, judged with the weights of the trained ``supernet``,
    see ``OneShot``, and the best of them trained for ``config.candidate_epochs``; ``rivals`` come
    before those. The result's ``validation`` and ``threshold`` are those of the winner's short
    training, ``best_epoch`` stays.
    """
    config = problem.config
    checkpoint = problem.candidates()
    # A candidate depends on nothing but its number, so the records are the whole state.
    records = checkpoint.restore({})
    known = [problem.genotype(record["cells"]) for record in records]
    first = [*known, derived.genotype, *rivals]
    genotypes = list(dict.fromkeys(first))[: config.rerank + 1]
    spent = checkpoint.spent
    with spent.stage("screening"):
        genotypes += _screened(problem, genotypes, weights, supernet)
    with problem.progress.stage("reranking", len(genotypes)) as shown:
        shown.advance(len(records))
        for number in range(len(records) + 1, len(genotypes) + 1):
            with spent.stage("rerank"):
                trained = train_candidate(problem, genotypes[number - 1], number)
            best = is_best(trained["validation_score"], records)
            records.append({"candidate": number, **trained, "best": best})
            checkpoint.save({}, records)
            shown.message(
                f"validation {problem.objective.metric} {trained['validation_score']:.3f}"
            )
            shown.advance()
    winner = best_record(records)
    an_epoch = samples_per_epoch(len(problem.train), config.batch_size)
    seen = len(genotypes) * config.candidate_epochs * an_epoch
    stages = {
        "screening": StageCost(spent.seconds["screening"], 0),
        "rerank": StageCost(spent.seconds["rerank"], seen),
    }
    return dataclasses.replace(
        derived,
        genotype=problem.genotype(winner["cells"]),
        validation=winner["validation_score"],
        candidates=len(genotypes),
        samples_seen=derived.samples_seen + seen,
        stages={**derived.stages, **stages},
        threshold=winner.get("threshold"),
        seconds=derived.seconds + checkpoint.seconds,
        processor_seconds=derived.processor_seconds + checkpoint.processor_seconds,
    )


def _screened(
    problem: SearchProblem,
    chosen: Sequence[Genotype],
    weights: ArchitectureWeights,
    supernet: Supernet,
) -> list[Genotype]:
    """Return as many genotypes as ``chosen`` lacks, the best of ``SCREENED`` first.

    No two networks are the same, ``chosen`` included.
    """
    wanted = problem.config.rerank + 1 - len(chosen)
    drawn = _drawn(problem, chosen, weights, max(wanted, SCREENED)) if wanted else []
    if len(drawn) <= wanted:
        return drawn
    place = problem.objective, problem.runtime.device
    with problem.progress.stage("screening", len(drawn)) as shown:
        one_shot = OneShot(supernet, problem.validation, *place, problem.seed)
        losses = []
        for genotype in drawn:
            losses.append(one_shot.loss(genotype))
            shown.advance()
    # sorted() keeps the order of draws among equals.
    return [drawn[n] for n in sorted(range(len(drawn)), key=losses.__getitem__)[:wanted]]


def _drawn(
    problem: SearchProblem, chosen: Sequence[Genotype], weights: ArchitectureWeights, wanted: int
) -> list[Genotype]:
    """Return up to ``wanted`` genotypes of different networks that are not ``chosen``."""
    config, names = problem.config, problem.train.names
    draw = Random(f"{problem.seed} rerank")
    sources = cycle([weights, even_weights(len(names), config)])
    known, drawn = {canonical(genotype) for genotype in chosen}, list[Genotype]()
    for _ in range(_DRAWS * wanted):
        if len(drawn) == wanted:
            break
        genotype = draw_genotype(next(sources), names, config, draw)
        name = canonical(genotype)
        if name not in known:
            known.add(name)
            drawn.append(genotype)
    return drawn
