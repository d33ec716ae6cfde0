"""Settings of trainings, the bounds that settings share, and what trainings leave; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Annotated, Any, Literal

from bmnas.machine.schema import Range

if TYPE_CHECKING:
    from torch import Tensor

Count = Annotated[int, Range(1)]
#: BatchNorm has no statistics of one sample.
BatchSize = Annotated[int, Range(2)]
#: Channels, length, units: as large as a genotype's file may say.
Size = Annotated[int, Range(1, 65536)]
#: A learning rate or weight decay.
Rate = Annotated[float, Range(0)]
Dropout = Annotated[float, Range(0, below=1)]
Probability = Annotated[float, Range(0, 1)]
#: Wrong pairs that are scored for each row; 0: none, any of them are trained on.
Negatives = Annotated[int, Range(0, 4096)]
Threshold = Annotated[float, Range(above=0, below=1)]


_OFFICIAL = 'steps = "official"'
_COSINE_ONLY, _OFFICIAL_ONLY = ("min_lr", "weight_decay", "warmup_steps"), ("falls", "gpu_batch")


def as_read(section: Any) -> Any:
    """Return the settings of a ``section`` without those that count for nothing beside its steps.

    Earlier versions recorded them; now they are refused. What is no table is left as it is.
    """
    if not isinstance(section, Mapping):
        return section
    unread = _COSINE_ONLY if section.get("steps") == "official" else _OFFICIAL_ONLY
    return {name: value for name, value in section.items() if not value or name not in unread}


def unread_of_official(falls: Sequence[int], gpu_batch: int) -> Iterator[tuple[str, str]]:
    """Yield what only the official training of MMnas reads, where there is another one."""
    given = {"falls": list(falls), "gpu_batch": gpu_batch}
    for name, value in given.items():
        if value:
            yield name, f"received {value} with other steps, expected none, or {_OFFICIAL}"


@dataclass(frozen=True)
class Recipe:
    """Adam with one cosine cycle from ``max_lr`` to ``min_lr``, step by step.

    In the first ``warmup_steps``, at most a quarter of all, the rate rises to that of the cycle.
    With ``part`` below 1 the cycle is longer, and the training ends where so much of it has passed.

    Parameters below ``backbones`` start from ``backbone_lr``, if given. ``decoupled`` weight decay
    is that of AdamW; else it is added to the gradient, as the search of BM-NAS does. With
    ``first_cycle`` there are warm restarts (SGDR): a cycle of so many epochs, then cycles that are
    twice as long as the one before. With ``official`` it is the training of MMnas instead, without
    decay, see ``fit.official_schedule``: its rate falls at the beginning of the epochs ``falls``,
    and gradients are clipped as where each GPU has ``gpu_batch`` samples of a batch; 0: all.
    """

    epochs: int
    batch_size: int
    max_lr: float
    min_lr: float
    weight_decay: float = 0.0
    backbone_lr: float | None = None
    decoupled: bool = False
    first_cycle: int | None = None
    official: bool = False
    falls: tuple[int, ...] = ()
    gpu_batch: int = 0
    warmup_steps: int = 0
    part: float = 1.0


@dataclass(frozen=True)
class ShortTraining(Recipe):
    """How candidates are trained and judged, up to ``together`` of them as one network.

    What counts is the evaluation of the last epoch, or of the ``best`` one; ``patience`` ends a
    training whose score has not risen for so many epochs.
    """

    dropout: float = 0.0
    together: int = 1
    best: bool = False
    patience: int | None = None


@dataclass(frozen=True)
class UnimodalConfig:
    """How a backbone without weights is trained: AdamW, one cosine cycle, fixed epochs.

    With ``folds`` it is trained that many times without a part of the train samples each: what
    fuses learns from features that the backbone has not learned by heart, see
    ``pipeline/unimodal.py``. With ``early_stopping`` validation says after how many ``epochs``, at
    most, a training ends. With ``linear`` a network of texts gets a linear model of their words
    beside it, see ``pipeline/bag.py``. With ``words`` it learns which words occur in the texts that
    a row comes with, and not the task: for tasks that one modality alone says little of.
    """

    epochs: Count = 8
    batch_size: BatchSize = 96
    max_lr: Rate = 2e-3
    min_lr: Rate = 1e-6
    weight_decay: Rate = 1e-2
    folds: Annotated[int, Range(0)] = 0
    early_stopping: bool = False
    linear: bool = False
    words: bool = False

    @property
    def recipe(self) -> Recipe:
        """The recipe that these settings are."""
        given = asdict(self)
        for other in ("folds", "early_stopping", "linear", "words"):
            del given[other]
        return Recipe(**given, decoupled=True)


@dataclass(frozen=True)
class TrainConfig:
    """The evaluation stage: fixed epochs on train + validation (spec section 7).

    ``backbone_lr`` is the peak learning rate of the backbones, ``max_lr`` of everything else.
    ``threshold`` turns probabilities into labels in multilabel tasks; None: the one that suits
    validation. ``freeze_backbones`` trains on the feature cache and leaves the backbones as they
    are. ``unimodal_logits`` adds the logits of the unimodal networks to those of what a search
    found, with weights that suit validation; in matching tasks, with frozen backbones, the
    similarity of the words that they predict. With ``steps = "official"`` it is trained as MMnas
    trains; then ``falls`` are the epochs, from 0, at whose beginning the rate falls, and gradients
    are clipped as where each GPU has ``gpu_batch`` samples of a batch; 0: all. ``negatives``: of so
    many wrong pairs of each row, scored before every epoch, the hardest are those that a matching
    task trains on; 0: on any.
    In the first ``warmup_steps``, at most a quarter of all, the rate rises. A modality that samples
    may lack is left out of a sample with probability ``modality_dropout``. ``precision`` is that of
    matrix products. With ``gradient_checkpointing`` backbones of transformers keep the inputs of
    their layers alone until gradients are computed, and compute the rest again.
    """

    epochs: Count = 20
    batch_size: BatchSize = 96
    dropout: Dropout = 0.1
    max_lr: Rate = 1e-3
    backbone_lr: Rate = 1e-4
    min_lr: Rate = 1e-6
    weight_decay: Rate = 1e-4
    threshold: Threshold | None = None
    freeze_backbones: bool = False
    unimodal_logits: bool = False
    steps: Literal["cosine", "official"] = "cosine"
    falls: tuple[Annotated[int, Range(0)], ...] = ()
    gpu_batch: Annotated[int, Range(0)] = 0
    negatives: Negatives = 0
    warmup_steps: Annotated[int, Range(0)] = 0
    modality_dropout: Dropout = 0.2
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield the settings that count for nothing beside the others."""
        if self.gradient_checkpointing and self.freeze_backbones:
            yield (
                "gradient_checkpointing",
                "received true with frozen backbones, of which no gradient is computed, expected "
                "freeze_backbones = false (--train-backbones)",
            )
        if self.steps == "official":
            for name in _COSINE_ONLY:
                value = getattr(self, name)
                # What nobody has set is passed over.
                if value not in (0, getattr(TrainConfig, name)):
                    yield name, f"received {value} with {_OFFICIAL}, which has none, expected 0"
        else:
            yield from unread_of_official(self.falls, self.gpu_batch)

    @property
    def recipe(self) -> Recipe:
        """The recipe in these settings."""
        return Recipe(
            self.epochs,
            self.batch_size,
            self.max_lr,
            self.min_lr,
            self.weight_decay,
            backbone_lr=self.backbone_lr,
            official=self.steps == "official",
            falls=self.falls,
            gpu_batch=self.gpu_batch,
            warmup_steps=self.warmup_steps,
        )


@dataclass(frozen=True)
class Weighing:
    """A sum of logits: each member's, times its weight, plus one ``bias`` for all outputs."""

    weights: Mapping[str, float]
    bias: float = 0.0

    def of(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return the sum (n, K) from the logits (n, K) of every member that has a weight."""
        terms = [weight * logits[name] for name, weight in self.weights.items()]
        return reduce(add, terms) + self.bias


@dataclass(frozen=True)
class Confusion:
    """How many samples were answered in which way: ``counts`` of ``rows`` by ``columns``."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
