"""What a search strategy is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from bmnas.features.missing import completed
from bmnas.features.samples import FeatureSamples, batches_per_epoch
from bmnas.machine.checkpoint import Checkpoint, Record
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.registry import space_named
from bmnas.spaces.space import SearchSpace
from bmnas.strategies.front import Point
from bmnas.strategies.settings import SearchConfig
from bmnas.strategies.strategy import Strategy
from bmnas.strategies.target import Aim, Within
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Evaluation
from bmnas.training.weighing import held_out_loss, held_out_sum

#: What a strategy finds: a genotype of its own space.
F_co = TypeVar("F_co", bound=Architecture, covariant=True)


@dataclass(frozen=True)
class SearchProblem:
    """Features of train and validation, the task's head, the budget; no test data.

    ``checkpoint`` is where the strategy leaves its state after every epoch or candidate;
    ``candidates`` opens another, for a strategy that trains candidates after its epochs.
    ``seeds`` searches are wanted, of seed ``seed`` and those after it. ``own`` are the settings
    that the strategy has of its own, if any; ``space`` names the space to look in, None for the
    strategy's, and ``sizes`` are its sizes where neither ``config`` nor ``own`` names them.
    ``unimodal`` are the logits (n, K) of the unimodal networks for validation, where what is found
    will be added to them; zeros for samples that lack the modality. ``types`` are those of the
    modalities, by name. ``aim`` says what may be found, where there are limits.
    """

    train: FeatureSamples
    validation: FeatureSamples
    classes: int
    head: TaskHead
    config: SearchConfig
    seed: int
    runtime: Runtime
    checkpoint: Checkpoint
    candidates: Callable[[], Checkpoint]
    progress: Progress
    seeds: int = 1
    own: Any = None
    space: str | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    unimodal: Mapping[str, Tensor] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    aim: Aim | None = None

    def worth(self, genotype: Architecture, found: Evaluation) -> float:
        """Return what a network with this result on validation is worth, the higher the better.

        Its score, or minus the loss of the sum that it would be part of, see ``held_out_loss``:
        by itself where a limit leaves no room for unimodal networks.
        """
        if not self.unimodal:
            return found.score
        alone = self.aim is not None and not self.aim.form(genotype)
        members = {"": found.logits} if alone else self._members(found)
        return -held_out_loss(members, self.validation.labels, self.head)

    def _members(self, found: Evaluation) -> dict[str, Tensor]:
        """Return the logits (n, K) of the whole that a network with this result is served in."""
        return completed({"": found.logits, **self.unimodal}, self.unimodal)

    @property
    def pareto(self) -> bool:
        """Whether a front is wanted."""
        return self.aim is not None and self.aim.target.pareto

    def forms(self, genotype: Architecture, found: Evaluation) -> list[Record]:
        """Return what a record says of each form that the network may be served in, for a front.

        Those are with unimodal logits, by held-out weights, and without, as far as they are within
        limits; none where no front is wanted.
        """
        if self.aim is None or not self.pareto:
            return []
        forms = []
        for heads in self.aim.forms:
            cost, score = self.aim.predict(genotype, heads=heads), found.score
            if heads:
                labels = self.validation.labels
                total = held_out_sum(self._members(found), labels, self.head)
                score = self.head.score(total, labels)
            if self.aim.within(cost):
                forms.append({"unimodal_logits": heads, "score": score, **asdict(cost)})
        return forms

    def keeps(self, genotype: Architecture) -> bool:
        """Tell whether the network of ``genotype`` is expected to be within the limits, if any."""
        return self.aim is None or self.aim.keeps(genotype)

    def confirms(self, genotype: Architecture, unimodal_logits: bool | None = None) -> bool:
        """Tell whether its whole network, measured, is within the limits, if there are any.

        In the form that is given, else in the first that is expected to be.
        """
        if self.aim is None or not self.aim.target.limits:
            return True
        return self.aim.confirms(genotype, unimodal_logits)

    @property
    def steps(self) -> int:
        """The steps of Algorithm 1, those of both passes."""
        return search_steps(self.config, len(self.train), len(self.validation))

    def threshold(self, logits: Tensor) -> Record:
        """Return what a record says of the threshold that suits validation logits best, if any."""
        chosen = self.head.best_threshold(logits, self.validation.labels)
        return {} if chosen is None else {"threshold": chosen}

    def space_for(self, strategy: type[Strategy]) -> SearchSpace[Any]:
        """Return the space to look in, over the features and of the sizes of the settings.

        With limits, what they leave of it.
        """
        own = {} if self.own is None else asdict(self.own)
        chosen = space_named(self.space or strategy.SPACE)
        settings = {**self.sizes, **asdict(self.config), **own, "types": self.types}
        space = chosen.of(self.train.names, settings)
        return space if self.aim is None else Within.of(space, self.aim)

    @property
    def cells(self) -> CellSpace:
        """The space of Cells over this problem's features."""
        return CellSpace.of(self.train.names, asdict(self.config))

    def genotype(self, cells: object) -> Genotype:
        """Return the genotype over this problem's features with ``cells`` as in its file."""
        return self.cells.genotype(cells)


def search_steps(config: SearchConfig, train: int, validation: int) -> int:
    """Return the steps of Algorithm 1, both passes, over so many samples."""
    size = config.batch_size
    return config.epochs * (batches_per_epoch(train, size) + batches_per_epoch(validation, size))


@dataclass(frozen=True)
class StageCost:
    """Seconds of one stage of a search, and the samples that passed through it."""

    seconds: float
    samples: int


@dataclass(frozen=True)
class Member:
    """What one of several searches found: its best epoch's genotype, score and threshold."""

    seed: int
    genotype: Genotype
    best_epoch: int
    validation: float
    threshold: float | None


@dataclass(frozen=True)
class Outcome(Generic[F_co]):
    """The genotype with the best validation score, and what finding it took.

    ``best_epoch`` is the epoch of a supernet that it was derived in, ``best_candidate`` the number
    of the short training that it won by; either may be None. ``candidates`` counts the networks
    that were trained, ``samples_seen`` the samples that passed forward and backward.
    ``threshold`` is the one that suits validation best, None where the task has none. ``seconds``
    is the time of the search alone, earlier lives included, ``processor_seconds`` that of the cores
    in this process, and ``stages`` what of the former went where; the rest is bookkeeping, such as
    checkpoints. Where several seeds were searched, ``seed`` is the one that the genotype comes
    from, and ``members`` are all. ``others`` are the next best genotypes with their validation
    scores, of a strategy that returns several. ``front`` is what a search returns that wants one.
    """

    genotype: F_co
    validation: float
    candidates: int
    samples_seen: int
    threshold: float | None
    seconds: float = field(compare=False)
    processor_seconds: float = field(compare=False)
    stages: Mapping[str, StageCost] = field(compare=False)
    best_epoch: int | None = None
    best_candidate: int | None = None
    seed: int | None = None
    members: tuple[Member, ...] = ()
    others: tuple[tuple[F_co, float], ...] = ()
    front: tuple[Point, ...] = ()


def best_record(records: Sequence[Record]) -> Record:
    """Return the record that was marked best last: the earliest with the highest score."""
    return [record for record in records if record["best"]][-1]


def is_best(score: float, records: Sequence[Record]) -> bool:
    """Tell whether ``score`` beats every record so far; the earliest keeps a tie."""
    return all(score > record["validation_score"] for record in records)
