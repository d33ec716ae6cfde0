"""Algorithm 1 of BM-NAS for several seeds at once: the supernets of all as one batched program."""

from __future__ import annotations

import dataclasses
from statistics import fmean

from torch import Tensor

from bmnas.machine.checkpoint import Record
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.supernet import ArchitectureWeights
from bmnas.spaces.cells.supernets import Supernets
from bmnas.strategies.bilevel import (
    Forward,
    Pass,
    epoch_record,
    initial_supernet,
    relax,
    stage_costs,
)
from bmnas.strategies.problem import Member, Outcome, SearchProblem, best_record, is_best
from bmnas.strategies.rerank import rerank
from bmnas.training.metrics import Evaluation, evaluate_several

_MEANS = ("train_loss", "architecture_loss", "validation_loss", "validation_score")


def search_several(problem: SearchProblem) -> Outcome[Genotype]:
    """Search with ``problem.seeds`` seeds and return the best of what they found.

    Each supernet begins as that of a search with its seed alone, and all see the same batches; a
    member's genotype is that of its own best epoch. The member with the highest validation score
    counts, of equals the lowest seed. With ``config.rerank`` of 1 or more, short trainings compare
    that member's genotype with the others', the best first, and with genotypes that its
    supernet suggests, ``rerank`` others in all. Raises UserError when a loss is no longer finite.
    """
    subject = _Several(problem)
    records = relax(problem, subject)
    best = [best_record([r["members"][s] for r in records]) for s in range(problem.seeds)]
    members = tuple(_member(problem, record) for record in best)
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
    number = first.seed - problem.seed
    record = best[number]
    weights = ArchitectureWeights(record["alpha"], record["beta"], record["gamma"])
    rivals = [member.genotype for member in ranked[1:]]
    supernet = subject.network.member(number).to(problem.runtime.device)
    reranked = rerank(problem, outcome, weights, supernet, rivals)
    found_by = next((m for m in ranked if m.genotype == reranked.genotype), first)
    return dataclasses.replace(reranked, seed=found_by.seed, best_epoch=found_by.best_epoch)


class _Several:
    """The supernets of all seeds."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._seeds = range(problem.seed, problem.seed + problem.seeds)
        members = [initial_supernet(problem, seed) for seed in self._seeds]
        # Batches and masks: not those of one of the members' own searches.
        seed_stage(problem.seed, f"search of {problem.seeds} seeds")
        self.network = Supernets(members).to(problem.runtime.device)
        self.forward: Forward = self.network
        if problem.runtime.compiles(problem.steps):
            problem.progress.note("several seeds at once are not compiled")

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._problem.head.network_losses(logits.transpose(0, 1), labels)

    def evaluate(self) -> list[Evaluation]:
        problem = self._problem
        place = problem.head, problem.runtime.device
        return evaluate_several(
            self.network, lambda x: self.forward(x).transpose(0, 1), problem.validation, *place
        )

    def record(
        self, passes: list[Pass], found: list[Evaluation], epoch: int, earlier: list[Record]
    ) -> Record:
        members = []
        for number, seed in enumerate(self._seeds):
            own = epoch_record(
                self._problem,
                f"search, seed {seed}",
                passes[number],
                found[number],
                self.network.member(number).architecture_weights(),
                epoch,
                [record["members"][number] for record in earlier],
            )
            members.append({"seed": seed, "epoch": epoch, **own})
        means = {name: fmean(member[name] for member in members) for name in _MEANS}
        best = is_best(means["validation_score"], earlier)
        return {**means, "best": best, "members": members}


def _member(problem: SearchProblem, record: Record) -> Member:
    return Member(
        seed=record["seed"],
        genotype=problem.genotype(record["cells"]),
        best_epoch=record["epoch"],
        validation=record["validation_score"],
        threshold=record.get("threshold"),
    )
