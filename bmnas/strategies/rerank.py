"""Reranking: short trainings decide between what Algorithm 1 derived and what it nearly did."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from random import Random
from typing import Any, TypeVar

from bmnas.features.samples import samples_per_epoch
from bmnas.machine.costs import CostMeter
from bmnas.machine.distributed import broadcast
from bmnas.machine.runtime import seed_stage, stage_seed
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import FUSION_MODULES, late_pairs, module_genotype
from bmnas.spaces.cells.one_shot import OneShot, SinglePath
from bmnas.spaces.cells.supernet import Supernet
from bmnas.spaces.ensembles.space import Ensemble
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.spaces.registry import architecture_from_dict, space_of
from bmnas.spaces.space import SearchSpace
from bmnas.strategies.evaluator import TrainingEvaluator
from bmnas.strategies.front import ordered
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost
from bmnas.strategies.settings import LONGER, RUNGS
from bmnas.strategies.strategy import Candidate
from bmnas.training.fit import fit

#: Networks that the supernet judges. With half as many, searches on easy-vqa saw too few that
#: multiply; on av-digits, in simulation, half and twice as many do as well.
SCREENED = 400
_FRONT = 16  # networks that are trained at first, for a front
A = TypeVar("A", bound=Architecture)

_DRAWS = 100  # for each genotype wanted; a small search space may not have as many


def rerank(
    problem: SearchProblem,
    derived: Outcome[Genotype],
    supernet: Supernet,
    rivals: Sequence[Genotype] = (),
) -> Outcome[Any]:
    """Return the best on validation of the ``derived`` genotype and ``config.rerank`` others.

    The supernet's own score says little about the network that is derived from it: its weights
    rank features by how much a little more of each would help, and can single out one modality
    while the supernet goes on using all. So ``SCREENED`` networks are drawn, by turns from the
    relaxed weights of the ``supernet``, as Algorithm 1 leaves it, and with even choices. It is
    trained on for ``config.candidate_epochs``, as another one of them at each step, and judges
    them with its weights, see ``one_shot``; the best are trained for as many epochs. ``rivals``
    come before those. With ``config.rivals`` hand-made fusions and known modules are compared with
    them, by successive halving (Jamieson and Talwalkar, AISTATS 2016): trainings are short at
    first, and the better third of the networks is trained anew, three times as long, twice. The
    result's ``validation`` and ``threshold`` are those of the winner's training, ``best_epoch``
    stays.
    """
    config = problem.config

    def found(meter: CostMeter) -> list[Architecture]:
        own = _candidates(problem, [derived.genotype, *rivals], supernet, meter)
        return [*own, *filter(problem.keeps, _rivals(problem) if config.rivals else [])]

    each = config.candidate_epochs * samples_per_epoch(len(problem.train), config.batch_size)
    stages = {"single_path": each, "screening": 0}
    # What is best alone may be trained long; a front needs many that were trained alike.
    halved = config.rivals and not problem.pareto
    return compare(problem, problem.cells, derived, found, stages, rungs=RUNGS if halved else 1)


def compare(
    problem: SearchProblem,
    space: SearchSpace[Any],
    derived: Outcome[Any],
    found: Callable[[CostMeter], Sequence[Architecture]],
    stages: Mapping[str, int],
    *,
    rungs: int,
) -> Outcome[Any]:
    """Return ``derived`` with the genotype that does best in short trainings.

    Of networks on pooled features it is the ensemble of the best ``config.ensemble``. Trainings
    compare what ``found`` returns, in ``rungs``, see ``_halve``; ``stages`` are those of finding
    it, each with the samples that pass through it.
    """
    checkpoint, wanted, config = problem.candidates(), _Wanted(), problem.config
    parts = {"wanted": wanted}
    evaluator = TrainingEvaluator(
        problem,
        space,
        config.first_rung if rungs > 1 else config.short_training,
        checkpoint,
        stage="rerank",
        parts=parts,
        judge=problem.worth,
    )
    meter = checkpoint.meter
    if not wanted.genotypes:
        wanted.genotypes = [genotype.to_dict() for genotype in found(meter)]
        checkpoint.save(parts, evaluator.records)
    genotypes = [architecture_from_dict(data) for data in wanted.genotypes]
    _halve(problem, evaluator, genotypes, rungs)
    best = evaluator.outcome(1 if space.READS_TOKENS else config.ensemble)
    added = {
        **best.stages,
        **{n: StageCost(meter.seconds[n], s) for n, s in stages.items() if n in meter.seconds},
    }
    return dataclasses.replace(
        derived,
        genotype=_averaged(problem, [best.genotype, *(genotype for genotype, _ in best.others)]),
        validation=best.validation,
        threshold=best.threshold,
        candidates=best.candidates,
        best_candidate=best.best_candidate,
        front=best.front,
        samples_seen=derived.samples_seen + sum(cost.samples for cost in added.values()),
        stages={**derived.stages, **added},
        seconds=derived.seconds + best.seconds,
        processor_seconds=derived.processor_seconds + best.processor_seconds,
    )


def _averaged(problem: SearchProblem, best: Sequence[Architecture]) -> Architecture:
    """Return the ensemble of as many of the ``best`` as are within the limits together.

    With unimodal logits where the first of them was compared with them.
    """
    form = (lambda _: None) if problem.aim is None else problem.aim.form
    for count in range(len(best), 1, -1):
        together = Ensemble(tuple(best[:count]))
        if form(together) == form(best[0]) and problem.confirms(together):
            return together
    return best[0]


def _halve(
    problem: SearchProblem,
    evaluator: TrainingEvaluator,
    genotypes: Sequence[Architecture],
    rungs: int,
) -> None:
    """Train all, and in each of the ``rungs`` to come the better third ``LONGER`` times as long."""
    sizes = [len(genotypes)]
    while len(sizes) < rungs:
        sizes.append(math.ceil(sizes[-1] / LONGER))
    with problem.progress.stage("reranking", sum(sizes)) as evaluator.shown:
        for rung, size in enumerate(sizes):
            genotypes = genotypes[:size]
            worth = evaluator.score([Candidate(g, longer=LONGER**rung) for g in genotypes])
            # sorted() keeps the order of candidates among equals.
            ranked = sorted(range(size), key=lambda number: -worth[number])
            genotypes = [genotypes[number] for number in ranked]


class _Wanted:
    """The genotypes that are compared, in the form of their files.

    A checkpoint keeps them: on another machine, which rounds otherwise, a supernet that is trained
    again would choose others.
    """

    def __init__(self) -> None:
        self.genotypes: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"genotypes": json.dumps(self.genotypes)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.genotypes = json.loads(state_dict["genotypes"])


def _rivals(problem: SearchProblem) -> list[Architecture]:
    """Return the hand-made fusions, and the known modules on the last features."""
    names, channels, length = problem.train.names, problem.config.channels, problem.config.length
    pairs = late_pairs(names)
    return [
        *(NamedFusion(name, channels, length) for name in FUSIONS),
        *(
            module_genotype(
                module, pairs, names, channels=channels, length=length, pairs_name="late"
            )
            for module in FUSION_MODULES
        ),
    ]


def train_single_path(
    problem: SearchProblem, genotypes: Sequence[Genotype], supernet: Supernet
) -> None:
    """Train the weights of ``supernet`` on, each step those of another one of ``genotypes``.

    As long as a candidate is trained. Raises UserError when the loss is no longer finite.
    """
    supernet.requires_grad_(True)
    for parameter in supernet.architecture_parameters():
        parameter.requires_grad_(False)
    # What draws are named decides what they are: it stays.
    seed_stage(problem.seed, "single networks")
    order = Random(f"{problem.seed} single networks").sample(list(genotypes), len(genotypes))
    network, training = SinglePath(supernet, order), problem.config.short_training
    fit(
        network,
        network,
        problem.train,
        problem.head,
        training,
        stage="single path",
        progress=problem.progress,
    )


def _candidates(
    problem: SearchProblem,
    first: Sequence[Genotype],
    supernet: Supernet,
    meter: CostMeter,
) -> list[Genotype]:
    """Return ``config.rerank`` + 1 genotypes: ``first``, then the best of ``SCREENED``."""
    space, weights = problem.cells, supernet.architecture_weights()

    def judge(genotypes: Sequence[Genotype]) -> Callable[[Genotype], float]:
        with meter.stage("single_path"):
            train_single_path(problem, genotypes, supernet)
        seed, device = stage_seed(problem.seed, "screening"), problem.runtime.device
        with meter.stage("screening"):
            return OneShot(supernet, problem.validation, problem.head, device, seed).loss

    ways = [lambda draw: space.sample_from(weights, draw), space.sample]
    return screened(problem, first, ways, judge, meter)


def screened(
    problem: SearchProblem,
    first: Sequence[A],
    ways: Sequence[Callable[[Random], A]],
    judge: Callable[[Sequence[A]], Callable[[A], float]],
    meter: CostMeter,
) -> list[A]:
    """Return ``config.rerank`` + 1 genotypes: ``first``, then the best of ``SCREENED``.

    These are drawn in each of the ``ways`` by turns. ``judge`` gets them all, where there is
    something to choose, and returns what says which loss one has. Where a front is wanted, they are
    at least ``_FRONT``, and those that lead to a front of loss, latency and weights.
    """
    aim = problem.aim if problem.pareto else None
    count = max(problem.config.rerank + 1, 0 if aim is None else _FRONT)
    chosen: dict[str, A] = {}
    for genotype in filter(problem.keeps, first):
        chosen.setdefault(space_of(genotype).canonical(genotype), genotype)
    wanted = max(0, count - len(chosen))
    drawn = _drawn(problem, set(chosen), ways, max(wanted, SCREENED)) if wanted else []
    if len(drawn) > wanted:
        loss = judge(drawn)
        with (
            meter.stage("screening"),
            problem.progress.stage("screening", len(drawn)) as shown,
        ):
            losses = []
            for genotype in drawn:
                losses.append(loss(genotype))
                shown.advance()
        # Of several ranks, which may round otherwise, all must train the same.
        losses = broadcast(losses)
        if aim is not None:
            costs = [aim.predict(genotype, heads=False) for genotype in drawn]
            pairs = zip(losses, costs, strict=True)
            order = ordered([(loss, c.latency_ms or 0.0, c.parameters) for loss, c in pairs])
        else:
            # sorted() keeps the order of draws among equals.
            order = sorted(range(len(drawn)), key=losses.__getitem__)
        drawn = [drawn[n] for n in order]
    return [*chosen.values(), *drawn][:count]


def _drawn(
    problem: SearchProblem, known: set[str], ways: Sequence[Callable[[Random], A]], wanted: int
) -> list[A]:
    """Return up to ``wanted`` genotypes of different networks, none ``known``, within limits."""
    draw, by_turns = Random(f"{problem.seed} rerank"), cycle(ways)
    drawn: list[A] = []
    for _ in range(_DRAWS * wanted):
        if len(drawn) == wanted:
            break
        genotype = next(by_turns)(draw)
        network = space_of(genotype).canonical(genotype)
        if network not in known:
            known.add(network)
            if problem.keeps(genotype):
                drawn.append(genotype)
    return drawn
