"""MFAS: sequential model-based search of fusion layers (Pérez-Rúa et al., CVPR 2019)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from bmnas.features.samples import samples_per_epoch
from bmnas.machine.checkpoint import Record
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Stage
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.mfas.genotype import Layers, MFASGenotype, layers_from
from bmnas.spaces.mfas.network import MFASNetwork
from bmnas.spaces.mfas.sampling import draw, temperatures
from bmnas.spaces.mfas.space import MFASSpace
from bmnas.spaces.mfas.stacked import StackedNetworks
from bmnas.spaces.mfas.surrogate import ScorePool
from bmnas.strategies.problem import Outcome, SearchProblem, StageCost, best_record, is_best
from bmnas.training.fit import Group, Recipe, fit
from bmnas.training.metrics import Evaluation, evaluate_several

_FIRST_CYCLE = 1  # epochs
_RETURNED = 5


def search_mfas(problem: SearchProblem) -> Outcome[MFASGenotype]:
    """Search fusion layers level by level, several times over, led by a surrogate.

    Each step puts every possible layer on the architectures kept so far, at its level. The first
    step trains all of them; later ones have the surrogate predict their scores, draw K by these,
    train the K and let the surrogate learn from all that is known. The K drawn are kept. With the
    settings of the authors and 4 features of each of two modalities, 32 + 11 * 15 = 197 candidates
    are trained.

    The genotype is the best candidate's, ``others`` are the next four. Raises UserError when there
    is one modality, or a loss is no longer finite.
    """
    settings, features, spent = problem.mfas, problem.train.names, problem.checkpoint.spent
    sizes = {"length": problem.config.length, **dataclasses.asdict(settings)}
    space = MFASSpace.of(features, sizes)
    seed_stage(problem.seed, "surrogate")
    pool = ScorePool(width=len(space.encode(space.unfold([], 0)[0])[0]))
    kept: list[MFASGenotype] = []
    levels = [*range(settings.levels)] * settings.sweeps
    heats = temperatures(settings.sweeps, settings.levels)
    with problem.progress.stage("mfas", _epochs(problem, len(space.unfold([], 0)))) as shown:
        candidates = _Candidates(problem, shown)
        for step, (level, heat) in enumerate(zip(levels, heats, strict=True)):
            unfolded = space.unfold(kept, level)
            generator = np.random.default_rng((problem.seed, step))
            if step == 0:
                trained = unfolded
                scores = candidates.train(step, [genotype.layers for genotype in trained])
                kept = draw(unfolded, scores, settings.kept, heat, generator)
            else:
                with spent.stage("surrogate"):
                    predicted = pool.predict([space.encode(genotype) for genotype in unfolded])
                kept = trained = draw(unfolded, predicted, settings.kept, heat, generator)
                scores = candidates.train(step, [genotype.layers for genotype in trained])
            with spent.stage("surrogate"):
                pool.learn([space.encode(genotype) for genotype in trained], scores)
    return _outcome(problem, candidates.records)


class _Candidates:
    """The candidates of a search in the order in which they are trained.

    A candidate depends on nothing but its number, those of its step and the settings, and the
    surrogate on nothing but the scores, so the records are the whole state: a search that goes on
    takes the scores of an earlier life from them.
    """

    def __init__(self, problem: SearchProblem, shown: Stage) -> None:
        self.problem, self.shown = problem, shown
        self.records: list[Record] = problem.checkpoint.restore({})
        self._told = 0

    def train(self, step: int, architectures: Sequence[Layers]) -> list[float]:
        """Return the validation scores of the candidates of a step, trained unless they were."""
        scores: list[float] = []
        together = self.problem.mfas.together
        for start in range(0, len(architectures), together):
            group = architectures[start : start + together]
            if self._told == len(self.records):
                self._train(step, group)
            else:
                self.shown.advance(self.problem.mfas.epochs)
            known = self.records[self._told : self._told + len(group)]
            self._require_same(known, group)
            scores += [record["validation_score"] for record in known]
            self._told += len(known)
        return scores

    def _train(self, step: int, group: Sequence[Layers]) -> None:
        problem = self.problem
        first = len(self.records) + 1
        with problem.checkpoint.spent.stage("candidates"):
            found = _train_together(problem, group, first, _Within(self.shown))
        for number, (layers, result) in enumerate(zip(group, found, strict=True), start=first):
            record: Record = {
                "epoch": number,
                "step": step + 1,
                "validation_loss": result.loss,
                "validation_score": result.score,
                "best": is_best(result.score, self.records),
                "layers": [layer.to_dict() for layer in layers],
            }
            if record["best"]:
                record |= problem.threshold(result.logits)
            self.records.append(record)
        problem.checkpoint.save({}, self.records)
        best = best_record(self.records)["validation_score"]
        self.shown.message(f"step {step + 1}  validation {problem.head.metric} {best:.3f}")

    def _require_same(self, known: Sequence[Record], group: Sequence[Layers]) -> None:
        if [layers_from(record["layers"]) for record in known] != list(group):
            raise UserError(
                "history.jsonl: received other candidates than the surrogate asks for here; go on "
                "where the search was begun, or start anew with --overwrite"
            )


class _Within:
    """Progress of a training inside a stage that counts epochs: losses of many say nothing."""

    def __init__(self, shown: Stage) -> None:
        self._shown = shown

    @contextlib.contextmanager
    def stage(self, name: str, units: int) -> Iterator[Stage]:
        yield self

    def advance(self, units: int = 1) -> None:
        self._shown.advance(units)

    def message(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def _train_together(
    problem: SearchProblem, group: Sequence[Layers], first: int, progress: _Within
) -> list[Evaluation]:
    """Train the candidates of ``group``, the first of which has the number ``first``.

    Returns how each does on validation after its best epoch.
    """
    settings, device = problem.mfas, problem.runtime.device
    networks = []
    for number, layers in enumerate(group, start=first):
        seed_stage(problem.seed, f"candidate {number}")
        networks.append(_network(problem, layers))
    stack = StackedNetworks(networks, problem.train.names).to(device)
    head = problem.head
    validation = problem.validation.select(stack.features)
    best: list[Evaluation] = []

    def measure() -> bool:
        found = evaluate_several(stack, stack, validation, head, device)
        pairs = zip(best or found, found, strict=True)
        best[:] = [new if new.score > old.score else old for old, new in pairs]
        return False

    seed_stage(problem.seed, f"training {first}")
    fit(
        stack,
        stack,
        [Group(list(stack.parameters()), settings.max_lr)],
        problem.train.select(stack.features),
        head,
        Recipe(
            settings.epochs,
            settings.batch_size,
            settings.min_lr,
            settings.weight_decay,
            first_cycle=_FIRST_CYCLE,
        ),
        device=device,
        checkpoint=None,
        progress=progress,
        stage=f"candidates {first} to {first + len(group) - 1}",
        loss=lambda output, labels: head.network_losses(output[-1], labels).sum(),
        until=measure,
    )
    return best


def _network(problem: SearchProblem, layers: Layers) -> MFASNetwork:
    return MFASNetwork(
        _genotype(problem, layers, problem.mfas.inner_size),
        problem.train.channels,
        classes=problem.classes,
        dropout=problem.mfas.dropout,
        heads=False,
    )


def _genotype(problem: SearchProblem, layers: Layers, inner_size: int) -> MFASGenotype:
    return MFASGenotype(
        features=problem.train.names,
        length=problem.config.length,
        inner_size=inner_size,
        layers=layers,
        scalars=problem.mfas.scalars,
    )


def _epochs(problem: SearchProblem, first: int) -> int:
    """Return the epochs of all trainings, the first of ``first`` candidates."""
    settings = problem.mfas
    later = settings.sweeps * settings.levels - 1
    groups = [-(-count // settings.together) for count in (first, settings.kept)]
    return settings.epochs * (groups[0] + later * groups[1])


def _outcome(problem: SearchProblem, records: Sequence[Record]) -> Outcome[MFASGenotype]:
    settings, spent = problem.mfas, problem.checkpoint.spent.seconds
    best = best_record(records)
    seen = samples_per_epoch(len(problem.train), settings.batch_size)
    seen *= len(records) * settings.epochs
    (genotype, validation), *others = _ranked(problem, records)[:_RETURNED]
    return Outcome(
        genotype=genotype,
        best_epoch=best["epoch"],
        validation=validation,
        candidates=len(records),
        samples_seen=seen,
        threshold=best.get("threshold"),
        seconds=problem.checkpoint.seconds,
        processor_seconds=problem.checkpoint.processor_seconds,
        stages={
            "candidates": StageCost(spent["candidates"], seen),
            "surrogate": StageCost(spent["surrogate"], 0),
        },
        others=tuple(others),
    )


def _ranked(problem: SearchProblem, records: Sequence[Record]) -> list[tuple[MFASGenotype, float]]:
    """Return all architectures with their highest scores, the best first, the earlier of equals."""
    scores: dict[Layers, float] = {}
    ordered = sorted(records, key=lambda record: -record["validation_score"])
    for record in ordered:
        scores.setdefault(layers_from(record["layers"]), record["validation_score"])
    size = problem.mfas.final_inner_size
    return [(_genotype(problem, layers, size), score) for layers, score in scores.items()]
