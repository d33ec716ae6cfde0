"""Who says what candidates are worth: short trainings. Their checkpoint, costs and outcome."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

import torch

from bmnas.features.samples import FeatureSamples, samples_per_epoch
from bmnas.machine.checkpoint import Checkpoint, Record, Stateful
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Stage
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.registry import architecture_from_dict, space_of
from bmnas.spaces.space import SearchSpace
from bmnas.strategies.front import Point, front
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost
from bmnas.strategies.strategy import Candidate, ProposingStrategy
from bmnas.training.metrics import Evaluation
from bmnas.training.settings import ShortTraining
from bmnas.training.together import Trained, fit_together


class BudgetSpentError(Exception):
    """A strategy asked for more scores than its budget allows; ``run_strategy`` catches it."""


class Evaluator(Protocol):
    """What judges candidates."""

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the validation score of each of ``candidates``.

        Raises BudgetSpentError when the budget ends among them; those before are judged.
        """
        ...


def run_strategy(strategy: ProposingStrategy, evaluator: Evaluator) -> None:
    """Judge what ``strategy`` asks for, until it asks for nothing or the budget is spent."""
    proposals = strategy.propose()
    candidates = next(proposals, ())
    with contextlib.suppress(BudgetSpentError, StopIteration):
        while candidates:
            candidates = proposals.send(evaluator.score(candidates))


def search_by_training(kind: type[ProposingStrategy], problem: SearchProblem) -> Outcome[Any]:
    """Search with the strategy ``kind`` by short trainings, see ``TrainingEvaluator``."""
    settings = problem.config if problem.own is None else problem.own
    space = problem.space_for(kind)
    strategy = kind(space, settings, problem.seed)
    evaluator = TrainingEvaluator(
        problem,
        space,
        kind.training(settings),
        problem.checkpoint,
        budget=kind.budget(settings),
        subsets=strategy.subsets,
    )
    with problem.progress.stage(kind.NAME, strategy.expected) as evaluator.shown:
        run_strategy(strategy, evaluator)
        # Some of what was expected was known before it was asked for.
        evaluator.shown.advance(max(0, strategy.expected - len(evaluator.records)))
    return evaluator.outcome(kind.RETURNS)


def _score_of(_: Architecture, found: Evaluation) -> float:
    return found.score


class TrainingEvaluator:
    """Candidates trained briefly on train and measured on validation.

    A candidate's result depends on nothing but the problem, its number, those that are trained
    with it, and the data. So the records are the whole state: a search that goes on takes from
    them what it knows. ``parts`` are saved with the records, which need to be restored before.
    ``judge`` says what a genotype's evaluation on validation is worth, by default its score.
    Networks over tokens are trained for the first half of a cosine, others for all of it.
    Raises UserError when a loss is no longer finite, or there are too few samples for the subsets.
    """

    def __init__(
        self,
        problem: SearchProblem,
        space: SearchSpace[Any],
        training: ShortTraining,
        checkpoint: Checkpoint,
        *,
        budget: int | None = None,
        subsets: int = 0,
        stage: str = "candidates",
        parts: Mapping[str, Stateful] | None = None,
        judge: Callable[[Architecture, Evaluation], float] = _score_of,
    ) -> None:
        if space.READS_TOKENS:
            # What relates tokens is learned late, and not once the rate has fallen: a short
            # training that goes through its whole cycle says nothing of a long one.
            training = dataclasses.replace(training, part=0.5)
        self._problem, self._space, self._training = problem, space, training
        self._checkpoint, self._parts = checkpoint, parts or {}
        self._stage, self._budget, self._judge = stage, budget, judge
        #: Where progress is told.
        self.shown = Stage()
        self.records: list[Record] = checkpoint.restore(self._parts)
        self._told = 0
        train, validation = problem.train, problem.validation
        if space.READS_MEANS:
            # Pooling to a vector has no weights: it is done once.
            train, validation = train.averaged(), validation.averaged()
        self._data = [train, *_subsets(problem, train, subsets)]
        self._validation = validation

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return what ``candidates`` are worth, trained unless they were."""
        left = len(candidates) if self._budget is None else self._budget - self._told
        scores: list[float] = []
        for group in self._groups(candidates[:left]):
            if self._told == len(self.records):
                self._train(group)
            known = self.records[self._told : self._told + len(group)]
            for record, candidate in zip(known, group, strict=True):
                if record["genotype"] != candidate.genotype.content():
                    raise UserError(
                        f"candidate {record['candidate']}: the checkpoint holds another one than "
                        "the strategy asks for here; go on where the search was begun, or start "
                        "anew with --overwrite"
                    )
            scores += [record["worth"] for record in known]
            self._told += len(known)
            self.shown.advance(len(known))
        if left < len(candidates):
            raise BudgetSpentError
        return scores

    def outcome(self, returned: int = 1) -> Outcome[Any]:
        """Return the best of those that saw all of train, and the next of ``returned``.

        With limits the best of those whose whole networks, measured, are within them; raises
        UserError where there is none.
        """
        found: dict[Architecture, Record] = {}
        # sorted() keeps the order of candidates among equals.
        for record in sorted(self.records, key=lambda r: (-r.get("longer", 1), -r["worth"])):
            if record.get("subset", 0) == 0 and len(found) < returned:
                genotype = self._final(record)
                if genotype not in found and self._problem.confirms(genotype):
                    found[genotype] = record
        if not found:
            raise UserError(
                f"none of the {len(self.records)} networks that were trained is within the limits "
                "once it is whole, though expected to be: allow more, or start anew with "
                "--overwrite when nothing else runs on this machine"
            )
        (best, record), *others = found.items()
        sizes = [samples_per_epoch(len(data), self._training.batch_size) for data in self._data]
        seen = sum(record["epochs"] * sizes[record.get("subset", 0)] for record in self.records)
        seconds = self._checkpoint.meter.seconds.get(self._stage, 0.0)
        return Outcome(
            genotype=best,
            validation=record["validation_score"],
            candidates=len(self.records),
            samples_seen=seen,
            threshold=record.get("threshold"),
            seconds=self._checkpoint.seconds,
            processor_seconds=self._checkpoint.processor_seconds,
            stages={self._stage: StageCost(seconds, seen)},
            best_candidate=record["candidate"],
            front=self._front(),
            others=tuple((other, own["validation_score"]) for other, own in others),
        )

    def _front(self) -> tuple[Point, ...]:
        """Return the front of all networks, each as its longest training left it.

        With a limit of latency, of those whose whole networks are within it.
        """
        longest = {
            str(record["genotype"]): record
            for record in sorted(self.records, key=lambda record: record.get("longer", 1))
            if record.get("subset", 0) == 0
        }
        left = [point for record in longest.values() for point in self._points(record)]
        while True:
            found = front(left)
            slow = [p for p in found if not self._problem.confirms(p.genotype, p.unimodal_logits)]
            if not slow:
                return found
            left = [point for point in left if point not in slow]

    def _points(self, record: Record) -> list[Point]:
        genotype, aim = self._final(record), self._problem.aim
        points = []
        for form in record.get("forms", ()):
            assert aim is not None
            heads = form["unimodal_logits"]
            # Not what the record says of it: a search may go on where clocks are others.
            cost = aim.predict(genotype, heads=heads)
            if cost.latency_ms is not None and aim.within(cost):
                found = form["score"], cost.latency_ms, cost.parameters
                points.append(Point(genotype, heads, *found))
        return points

    def _final(self, record: Record) -> Architecture:
        genotype = architecture_from_dict(record["genotype"])
        if isinstance(genotype, self._space.GENOTYPE):
            genotype = self._space.final(genotype)
        return genotype

    def _groups(self, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        """Yield those of the same data that are trained as one network."""
        for _, same in groupby(candidates, lambda candidate: (candidate.data, candidate.longer)):
            each = list(same)
            for start in range(0, len(each), self._training.together):
                yield each[start : start + self._training.together]

    def _train(self, group: Sequence[Candidate]) -> None:
        """Train ``group`` together, and leave a record of each."""
        first = len(self.records) + 1
        with self._checkpoint.meter.stage(self._stage):
            trained = self._fit(group, first)
        for candidate, found in zip(group, trained, strict=True):
            record: Record = {
                "candidate": len(self.records) + 1,
                **candidate.note,
                **({"subset": candidate.data} if len(self._data) > 1 else {}),
                **({"longer": candidate.longer} if candidate.longer > 1 else {}),
                "epochs": found.epochs,
                "validation_loss": found.best.loss,
                "validation_score": found.best.score,
                "worth": self._judge(candidate.genotype, found.best),
                "genotype": candidate.genotype.content(),
            }
            if forms := self._problem.forms(candidate.genotype, found.best):
                record["forms"] = forms
            # Networks that saw other data, or less of it, say nothing about which one is better.
            rivals = [
                other
                for other in self.records
                if other.get("subset", 0) == 0 and other.get("longer", 1) == candidate.longer
            ]
            record["best"] = candidate.data == 0 and all(
                record["worth"] > other["worth"] for other in rivals
            )
            if record["best"]:
                record |= self._problem.threshold(found.best.logits)
            self.records.append(record)
        self._checkpoint.save(self._parts, self.records)
        best = max(found.best.score for found in trained)
        self.shown.message(f"validation {self._problem.head.metric} {best:.3f}")

    def _fit(self, group: Sequence[Candidate], first: int) -> list[Trained]:
        problem, training = self._problem, self._training
        networks = []
        for number, candidate in enumerate(group, start=first):
            seed_stage(problem.seed, f"candidate {number}")
            networks.append(
                space_of(candidate.genotype).build_candidate(
                    candidate.genotype,
                    problem.train.channels,
                    classes=problem.classes,
                    dropout=training.dropout,
                )
            )
        training = dataclasses.replace(training, epochs=group[0].longer * training.epochs)
        seed_stage(problem.seed, f"candidates from {first}")
        last = first + len(group) - 1
        return fit_together(
            networks,
            self._data[group[0].data],
            self._validation,
            problem.head,
            training,
            device=problem.runtime.device,
            stage=f"candidate {first}" if first == last else f"candidates {first} to {last}",
        )


def stratified(labels: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return the sample numbers of ``count`` disjoint parts in which labels are equally frequent.

    ``labels`` are (n,) classes or (n, K) zeros and ones, whose rows count as classes: no two parts
    differ by more than one sample in any. Draws from torch's global generator.
    """
    order = torch.randperm(len(labels))
    _, classes = torch.unique(labels[order], dim=0, return_inverse=True)
    dealt = order[torch.argsort(classes, stable=True)]
    return [dealt[number::count] for number in range(count)]


def _subsets(problem: SearchProblem, train: FeatureSamples, count: int) -> list[FeatureSamples]:
    """Return the disjoint parts of ``train`` that candidates may be trained on."""
    if count == 0:
        return []
    if len(train) < 2 * count:
        raise UserError(
            f"evolution.subsets: received {count} for {len(train)} train samples, expected at "
            f"most {len(train) // 2}, of two samples each"
        )
    seed_stage(problem.seed, "subsets")
    return [train.take(rows) for rows in stratified(train.labels, count)]
