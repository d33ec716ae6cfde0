"""Evolution of fusion trees, on all data or by divide and conquer (DC-NAS, AAAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch

from bmnas.features.samples import FeatureSamples, samples_per_epoch
from bmnas.machine.checkpoint import Record
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Stage
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.trees.evolve import evolve, judged
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.network import TreeFusion
from bmnas.spaces.trees.training import train_trees
from bmnas.spaces.trees.tree import Tree, text
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best


def search_evolution(problem: SearchProblem) -> Outcome[FusionTree]:
    """Evolve fusion trees by their validation score, as ``problem.evolution`` says.

    A tree is trained once on the same data, whatever the order of operands. The result is the best
    of those that were trained on the whole train part. Raises UserError when a loss is no longer
    finite, or there are too few train samples for the subsets.
    """
    settings = problem.evolution
    # What is drawn hangs on seed and scores alone, so the records are the whole state.
    records = problem.checkpoint.restore({})
    with problem.progress.stage("evolution", judged(settings)) as shown:
        trials = _Trials(problem, records, shown)
        evolve(problem.train.names, settings, Random(problem.seed), trials.judge)
    best = best_record(records)
    seen = sum(trials.samples_seen(record) for record in records)
    seconds = problem.checkpoint.spent.seconds["candidates"]
    return Outcome(
        genotype=trials.found(trials.trees[best["tree"]]),
        best_epoch=best["epoch"],
        validation=best["validation_score"],
        candidates=len(records),
        samples_seen=seen,
        threshold=best.get("threshold"),
        seconds=problem.checkpoint.seconds,
        processor_seconds=problem.checkpoint.processor_seconds,
        stages={"candidates": StageCost(seconds, seen)},
    )


class _Trials:
    """Trees and what they are worth, trained, known from before, or found in ``records``."""

    def __init__(self, problem: SearchProblem, records: list[Record], shown: Stage) -> None:
        self.trees: dict[str, Tree] = {}
        self._problem = problem
        self._records = records
        self._shown = shown
        self._scores: dict[tuple[str, int], float] = {}
        # Pooling to a vector has no weights: it is done once.
        whole = problem.train.averaged()
        self._train = [whole, *_subsets(problem, whole)]
        self._validation = problem.validation.averaged()

    def judge(self, trees: Sequence[Tree], data: int, generation: int) -> list[float]:
        """Return the validation scores of ``trees`` trained on the data number ``data``."""
        new = [tree for tree in dict.fromkeys(trees) if (text(tree), data) not in self._scores]
        number = len(self._scores) + 1
        if number + len(new) - 1 > len(self._records):
            self._train_candidates(new, data, generation)
        for tree, record in zip(new, self._records[number - 1 :], strict=False):
            key = (text(tree), data)
            if (record["tree"], record["subset"]) != key:
                raise UserError(
                    f"candidate {record['epoch']} is {key[0]}, the checkpoint holds "
                    f"{record['tree']}: it was written by another version; start anew with "
                    "--overwrite"
                )
            self.trees[key[0]] = tree
            self._scores[key] = record["validation_score"]
        self._shown.advance(len(trees))
        return [self._scores[text(tree), data] for tree in trees]

    def found(self, tree: Tree) -> FusionTree:
        """Return ``tree`` as what a search finds."""
        width, length = self._problem.evolution.width, self._problem.config.length
        return FusionTree(self._problem.train.names, width, length, tree)

    def samples_seen(self, record: Record) -> int:
        """Return how many samples the training that ``record`` describes went through."""
        count, size = len(self._train[record["subset"]]), self._problem.evolution.batch_size
        return int(record["epochs"]) * samples_per_epoch(count, size)

    def _train_candidates(self, trees: Sequence[Tree], data: int, generation: int) -> None:
        """Train ``trees`` together, and leave a record of each.

        That depends on nothing but the problem, the trees, the data and how many were trained
        before.
        """
        problem, first = self._problem, len(self._records) + 1
        with problem.checkpoint.spent.stage("candidates"):
            networks = [self._network(tree, first + n) for n, tree in enumerate(trees)]
            seed_stage(problem.seed, f"candidates from {first}")
            trained = train_trees(
                networks,
                self._train[data],
                self._validation,
                problem.head,
                problem.evolution,
                device=problem.runtime.device,
                stage=f"candidates {first} to {first + len(trees) - 1}",
                tell=lambda text: self._shown.message(f"generation {generation}, {text}"),
            )
        for tree, (epochs, found) in zip(trees, trained, strict=True):
            record: Record = {
                "epoch": len(self._records) + 1,
                "generation": generation,
                "subset": data,
                "epochs": epochs,
                "validation_loss": found.loss,
                "validation_score": found.score,
                "tree": text(tree),
            }
            record |= problem.threshold(found.logits)
            # Scores of networks that saw other data say nothing about which tree is better.
            rivals = [each for each in self._records if each["subset"] == 0]
            record["best"] = data == 0 and is_best(found.score, rivals)
            self._records.append(record)
        problem.checkpoint.save({}, self._records)

    def _network(self, tree: Tree, number: int) -> TreeFusion:
        problem = self._problem
        seed_stage(problem.seed, f"candidate {number}")
        channels = problem.train.channels
        return TreeFusion(self.found(tree), channels, classes=problem.classes, dropout=0.0)


def _subsets(problem: SearchProblem, train: FeatureSamples) -> list[FeatureSamples]:
    """Return the parts of ``train`` that the populations of the subsets see, see ``stratified``."""
    count = problem.evolution.subsets
    if count == 0:
        return []
    if len(train) < 2 * count:
        raise UserError(
            f"evolution.subsets: received {count} for {len(train)} train samples, expected at "
            f"most {len(train) // 2}, of two samples each"
        )
    seed_stage(problem.seed, "subsets")
    return [train.take(rows) for rows in stratified(train.labels, count)]


def stratified(labels: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return the sample numbers of ``count`` disjoint parts in which labels are equally frequent.

    ``labels`` are (n,) classes or (n, K) zeros and ones, whose rows count as classes: no two parts
    differ by more than one sample in any. Draws from torch's global generator.
    """
    order = torch.randperm(len(labels))
    _, classes = torch.unique(labels[order], dim=0, return_inverse=True)
    dealt = order[torch.argsort(classes, stable=True)]
    return [dealt[number::count] for number in range(count)]
