"""Random search: candidates drawn evenly, each trained for a few epochs, the best one kept."""

from __future__ import annotations

from random import Random

from bmnas.features.samples import samples_per_epoch
from bmnas.spaces.cells.genotype import Genotype
from bmnas.strategies.candidates import train_candidate
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best


def search_random(problem: SearchProblem) -> Outcome[Genotype]:
    """Train ``config.candidates`` random genotypes for ``config.candidate_epochs`` epochs each.

    Raises UserError when a loss is no longer finite.
    """
    config = problem.config
    draw = Random(problem.seed)
    genotypes = [problem.cells.sample(draw) for _ in range(config.candidates)]
    # A candidate depends on nothing but its number, so the records are the whole state.
    records = problem.checkpoint.restore({})
    spent = problem.checkpoint.spent
    with problem.progress.stage("random search", config.candidates) as shown:
        shown.advance(len(records))
        for number in range(len(records) + 1, config.candidates + 1):
            with spent.stage("candidates"):
                trained = train_candidate(problem, genotypes[number - 1], number)
            record = {"epoch": number, **trained}
            record["best"] = is_best(record["validation_score"], records)
            records.append(record)
            problem.checkpoint.save({}, records)
            shown.message(f"validation {problem.head.metric} {record['validation_score']:.3f}")
            shown.advance()
    best = best_record(records)
    an_epoch = samples_per_epoch(len(problem.train), config.batch_size)
    seen = config.candidates * config.candidate_epochs * an_epoch
    return Outcome(
        genotype=problem.genotype(best["cells"]),
        best_epoch=best["epoch"],
        validation=best["validation_score"],
        candidates=config.candidates,
        samples_seen=seen,
        threshold=best.get("threshold"),
        seconds=problem.checkpoint.seconds,
        processor_seconds=problem.checkpoint.processor_seconds,
        stages={"candidates": StageCost(spent.seconds["candidates"], seen)},
    )
