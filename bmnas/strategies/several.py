"""Algorithm 1 of BM-NAS for several seeds: side by side on a CPU's cores, else one after another.

The seeds share backbones and feature cache. What a seed finds is what a search with that seed
alone finds with as many threads; each has a checkpoint of its own, so a search that was stopped
goes on where every seed was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import as_completed
from statistics import fmean

from bmnas.machine.checkpoint import Checkpoint, Record
from bmnas.machine.distributed import world_size
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import cores, worker_pool
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.operations import OPERATIONS, PAPER, Operation
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies.bilevel import initial_supernet, relax, stage_costs
from bmnas.strategies.problem import Member, Outcome, SearchProblem, best_record, is_best
from bmnas.strategies.rerank import rerank

_MEANS = ("train_loss", "architecture_loss", "validation_loss", "validation_score")


def search_several(problem: SearchProblem) -> Outcome[Genotype]:
    """Search with ``problem.seeds`` seeds and return the best of what they found.

    A member's genotype is that of its own best epoch. The member with the highest validation score
    counts, of equals the lowest seed. With ``config.rerank`` of 1 or more, short trainings compare
    that member's genotype with the others', the best first, and with genotypes that its
    supernet suggests, ``rerank`` others in all. Raises UserError when a loss is no longer finite.
    """
    searches = {seed: _of_seed(problem, seed) for seed in _seeds(problem)}
    supernet = initial_supernet(problem).to(problem.runtime.device)
    parts = {"supernet": supernet}
    records = problem.checkpoint.restore(parts)
    if not records:
        records = _search_all(problem, searches, supernet)
        problem.checkpoint.save(parts, records)
    for search in searches.values():
        search.checkpoint.remove()
    members = _members(problem, records)
    # sorted() keeps the order of seeds among equals.
    ranked = sorted(members, key=lambda member: -member.validation)
    first, stages = ranked[0], stage_costs(problem)
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
        seed=first.seed,
        members=members,
    )
    if problem.config.rerank == 0:
        return outcome
    rivals = [member.genotype for member in ranked[1:]]
    reranked = rerank(problem, outcome, supernet, rivals)
    found_by = next((m for m in ranked if m.genotype == reranked.genotype), first)
    return dataclasses.replace(reranked, seed=found_by.seed, best_epoch=found_by.best_epoch)


def _seeds(problem: SearchProblem) -> range:
    return range(problem.seed, problem.seed + problem.seeds)


def _of_seed(problem: SearchProblem, seed: int) -> SearchProblem:
    """Return the search with ``seed`` alone, without short trainings; it can go to a process."""
    return dataclasses.replace(
        problem,
        seed=seed,
        seeds=1,
        checkpoint=problem.checkpoint.of_part(f"seed-{seed}"),
        candidates=_no_candidates,
        progress=Progress(),
    )


def _no_candidates() -> Checkpoint:
    raise RuntimeError("a member trains no candidates: the search of all seeds does")


def _search_all(
    problem: SearchProblem, searches: dict[int, SearchProblem], supernet: Supernet
) -> list[Record]:
    """Return the records of all epochs, and make ``supernet`` the best member's."""
    checkpoint = problem.checkpoint
    checkpoint.save({"supernet": supernet}, [])  # from now on there is something to resume
    with problem.progress.stage(f"search of {len(searches)} seeds", len(searches)) as shown:
        for seed in _each_done(searches):
            shown.message(f"seed {seed} is done")
            shown.advance()
            checkpoint.save({"supernet": supernet}, [])  # for the time that it took so far
    histories: dict[int, list[Record]] = {}
    highest = float("-inf")
    finished = {seed: checkpoint.of_part(f"seed-{seed}") for seed in searches}
    for seed, search in searches.items():
        own = dataclasses.replace(search, checkpoint=finished[seed])
        # Every epoch is there already: this reads them, and the supernet of the best.
        histories[seed], found = relax(own)
        score = best_record(histories[seed])["validation_score"]
        if score > highest:
            highest = score
            supernet.load_state_dict(found.state_dict())
    checkpoint.add_parts(finished.values())
    return _merged(histories)


def _each_done(searches: dict[int, SearchProblem]) -> Iterator[int]:
    """Run the searches and yield the seed of each that is done."""
    some = next(iter(searches.values()))
    workers = min(len(searches), cores()) if some.runtime.device.type == "cpu" else 1
    if world_size() > 1 or workers == 1:
        for seed, search in searches.items():
            _relax(search, seed)
            yield seed
        return
    own = tuple(operation for name, operation in OPERATIONS.items() if name not in PAPER)
    with worker_pool(workers, _register, own) as pool:
        running = {pool.submit(_relax, search, seed): seed for seed, search in searches.items()}
        for future in as_completed(running):
            future.result()
            yield running[future]


def _register(operations: tuple[Operation, ...]) -> None:
    OPERATIONS.update({operation.name: operation for operation in operations})


def _relax(search: SearchProblem, seed: int) -> None:
    relax(search, f"search, seed {seed}")


def _merged(histories: dict[int, list[Record]]) -> list[Record]:
    """Return a record of each epoch with all members' own and the means of their numbers."""
    records: list[Record] = []
    for epoch, own in enumerate(zip(*histories.values(), strict=True), start=1):
        means = {name: fmean(record[name] for record in own) for name in _MEANS}
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


def _members(problem: SearchProblem, records: list[Record]) -> tuple[Member, ...]:
    members = []
    for number, seed in enumerate(_seeds(problem)):
        best = best_record([record["members"][number] for record in records])
        members.append(
            Member(
                seed=seed,
                genotype=problem.genotype(best["cells"]),
                best_epoch=best["epoch"],
                validation=best["validation_score"],
                threshold=best.get("threshold"),
            )
        )
    return tuple(members)
