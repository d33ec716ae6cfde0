"""Reranking: short trainings decide between what Algorithm 1 derived and what it nearly did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random

from bmnas.genotype import Genotype
from bmnas.samples import samples_per_epoch
from bmnas.strategies.candidates import draw_genotype, train_candidate
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best
from bmnas.supernet import ArchitectureWeights

_DRAWS = 100  # for each genotype wanted; a small search space may not have as many


def rerank(
    problem: SearchProblem,
    derived: Outcome[Genotype],
    weights: ArchitectureWeights,
    rivals: Sequence[Genotype] = (),
) -> Outcome[Genotype]:
    """Return the best on validation of the ``derived`` genotype and ``config.rerank`` others.

    The supernet's own score says little about the network that is derived from it: its weights
    rank features by how much a little more of each would help, and can single out one modality
    while the supernet goes on using all. So others are drawn from the relaxed ``weights``, and
    each is trained for ``config.candidate_epochs``; ``rivals`` come before those. The
    result's ``validation`` and ``threshold`` are those of the winner's short training,
    ``best_epoch`` stays.
    """
    config = problem.config
    genotypes = _genotypes(problem, [derived.genotype, *rivals], weights)
    checkpoint = problem.candidates()
    # A candidate depends on nothing but its number, so the records are the whole state.
    records = checkpoint.restore({})
    with problem.progress.stage("reranking", len(genotypes)) as shown:
        shown.advance(len(records))
        for number in range(len(records) + 1, len(genotypes) + 1):
            trained = train_candidate(problem, genotypes[number - 1], number)
            best = is_best(trained["validation_score"], records)
            records.append({"candidate": number, **trained, "best": best})
            checkpoint.save({}, records)
            shown.message(
                f"validation {problem.objective.metric} {trained['validation_score']:.3f}"
            )
            shown.advance()
    winner = best_record(records)
    seen = config.candidate_epochs * samples_per_epoch(len(problem.train), config.batch_size)
    return dataclasses.replace(
        derived,
        genotype=problem.genotype(winner["cells"]),
        validation=winner["validation_score"],
        candidates=len(genotypes),
        samples_seen=derived.samples_seen + len(genotypes) * seen,
        stages={**derived.stages, "rerank": StageCost(checkpoint.seconds, len(genotypes) * seen)},
        threshold=winner.get("threshold"),
        seconds=derived.seconds + checkpoint.seconds,
    )


def _genotypes(
    problem: SearchProblem, derived: Sequence[Genotype], weights: ArchitectureWeights
) -> list[Genotype]:
    """Return the first derived genotype and up to ``config.rerank`` different ones."""
    config = problem.config
    draw = Random(f"{problem.seed} rerank")
    genotypes = list(dict.fromkeys(derived))[: config.rerank + 1]
    for _ in range(_DRAWS * config.rerank):
        if len(genotypes) > config.rerank:
            break
        genotype = draw_genotype(weights, problem.train.names, config, draw)
        if genotype not in genotypes:
            genotypes.append(genotype)
    return genotypes
