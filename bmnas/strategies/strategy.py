"""What a search strategy is: it proposes genotypes, and is told what they are worth.

A strategy knows its space and nothing of how a candidate is judged: by a short training
(``evaluator.TrainingEvaluator``) or from a table (``bmnas.lab.tables.TableEvaluator``). To add one
is to subclass ``ProposingStrategy`` and to call ``bmnas.strategies.register_strategy``. Nothing
heavy is imported before a search begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from bmnas.spaces.architecture import Architecture
from bmnas.spaces.registry import space_named
from bmnas.spaces.space import SearchSpace
from bmnas.strategies.settings import SearchConfig
from bmnas.training.settings import ShortTraining

if TYPE_CHECKING:
    from bmnas.strategies.problem import Outcome, SearchProblem

#: What propose() is: it yields candidates and receives their scores.
Proposals = Generator[Sequence["Candidate"], Sequence[float], None]


@dataclass(frozen=True)
class Candidate:
    """A genotype to be judged on the data number ``data``: 0 all of train, 1 and up a subset.

    It is trained ``longer`` times as long as the others; those with a larger one are preferred.
    ``note`` goes into its record, such as the generation that it is of.
    """

    genotype: Architecture
    data: int = 0
    longer: int = 1
    note: Mapping[str, int] = field(default_factory=dict)


class Strategy(ABC):
    """A way to search, known by its ``NAME``.

    ``SPACE`` is where it looks unless it is told to look elsewhere. ``SETTINGS`` is the dataclass
    of settings of its own, a section of its name in a preset. ``READS`` names the settings of
    ``[search]`` that it reads; the sizes of its space come in addition. ``TRAINS_SUPERNET`` says
    that it needs gradients: a table cannot answer for it.
    """

    NAME: ClassVar[str]
    SPACE: ClassVar[str] = "cells"
    SETTINGS: ClassVar[type[Any] | None] = None
    READS: ClassVar[frozenset[str]] = frozenset({"cache_dtype"})
    TRAINS_SUPERNET: ClassVar[bool] = False
    #: Settings by section that make it the paper's method; none: there is no such recipe.
    PAPER: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def check_space(cls, space: str | None) -> None:
        """Raise UserError where it cannot look in the space called ``space``; None is its own."""
        space_named(space or cls.SPACE)

    @classmethod
    def length(cls, space: str | None, pooled: int) -> int | None:
        """Return the length that features have: ``pooled``, or None in a space of tokens."""
        return None if space_named(space or cls.SPACE).READS_TOKENS else pooled

    @classmethod
    @abstractmethod
    def search(cls, problem: SearchProblem) -> Outcome[Any]:
        """Search and return what was found; raises UserError when a loss is no longer finite."""


class ProposingStrategy(Strategy):
    """A strategy that asks for scores of candidates and is told them, see ``run_strategy``.

    ``settings`` are of the class ``SETTINGS``, or those of ``[search]``. All chances come from
    ``draw`` or from ``seed``, so that the same scores lead to the same proposals: a search that was
    stopped repeats them.
    """

    READS: ClassVar[frozenset[str]] = frozenset(
        {
            *("batch_size", "dropout", "max_lr", "min_lr", "weight_decay", "warmup_steps"),
            *("candidates", "candidate_epochs", "cache_dtype"),
        }
    )
    #: How many of the best candidates a search returns.
    RETURNS: ClassVar[int] = 1

    def __init__(self, space: SearchSpace[Any], settings: Any, seed: int) -> None:
        self.space = space
        self.settings = settings
        self.seed = seed
        self.draw = Random(seed)

    @abstractmethod
    def propose(self) -> Proposals:
        """Yield candidates and receive their scores, the higher the better; end or never end."""

    @property
    def expected(self) -> int:
        """How many candidates it will ask for, at most; the budget where it has one."""
        return self.budget(self.settings) or 0

    @property
    def subsets(self) -> int:
        """How many disjoint subsets of train its candidates may ask for."""
        return 0

    @classmethod
    def budget(cls, settings: Any) -> int | None:
        """Return how many candidates may be judged; None where it ends by itself."""
        return settings.candidates if isinstance(settings, SearchConfig) else None

    @classmethod
    def training(cls, settings: Any) -> ShortTraining:
        """Return how its candidates are trained."""
        trained: ShortTraining = settings.short_training
        return trained

    @classmethod
    def search(cls, problem: SearchProblem) -> Outcome[Any]:
        """Search by short trainings of the candidates."""
        from bmnas.strategies.evaluator import search_by_training

        cls.check_space(problem.space)
        return search_by_training(cls, problem)
