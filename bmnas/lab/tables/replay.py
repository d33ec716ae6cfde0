"""Replaying searches on a table: what a strategy would train is looked up, in no time.

Every strategy of ``bmnas search`` that proposes candidates runs here as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from bmnas.lab.tables.table import Entry, Table
from bmnas.machine.errors import UserError, close
from bmnas.spaces.cells.genotype import Genotype
from bmnas.strategies import STRATEGIES, Candidate, ProposingStrategy
from bmnas.strategies.evaluator import BudgetSpentError, run_strategy
from bmnas.strategies.settings import SearchConfig

Replayed = type[ProposingStrategy]


class TableEvaluator:
    """Says what a table knows of candidates, ``budget`` of them; subsets of data are not known.

    Of an entry's trainings one is drawn, each time anew: a search trains a candidate once.
    """

    def __init__(self, table: Table, seed: int, budget: int) -> None:
        #: The entries that were asked for, in order, and the scores that were seen.
        self.asked: list[tuple[int, float]] = []
        self._table = table
        self._budget = budget
        self._noise = Random(f"{seed} training")

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the validation score of one training of each candidate.

        Raises BudgetSpentError when nothing is left.
        """
        return [self._score(candidate) for candidate in candidates]

    def _score(self, candidate: Candidate) -> float:
        if len(self.asked) == self._budget:
            raise BudgetSpentError
        if not isinstance(candidate.genotype, Genotype):
            raise UserError(
                f"received a genotype of format {candidate.genotype.FORMAT!r}, expected Cells: a "
                "table holds no other networks"
            )
        entry = self._table.entry(candidate.genotype)
        score = entry.validation[self._noise.randrange(self._table.seeds)]
        self.asked.append((entry.number, score))
        return score


@dataclass(frozen=True)
class Replay:
    """What a replayed search asked for, and what it ends with.

    ``asked`` holds the numbers of the entries in order and the scores that it saw; ``seconds`` is
    what their trainings took when the table was built.
    """

    asked: tuple[tuple[int, float], ...]
    best: Entry
    seconds: float


def replayed_strategies() -> Mapping[str, Replayed]:
    """Return the strategies that can be replayed: those that train no supernet."""
    return {name: s for name, s in STRATEGIES.items() if issubclass(s, ProposingStrategy)}


def replay(
    table: Table,
    strategy: str | Replayed,
    *,
    seed: int,
    budget: int,
    settings: Any = None,
) -> Replay:
    """Run ``strategy`` on ``table`` until it ends or has asked for ``budget`` scores.

    ``settings`` are those of the strategy, by default the defaults. The result is the candidate
    whose score was best when it was seen; the first of equals. Raises UserError for a strategy that
    cannot be replayed, a budget below 1, or a strategy that asks for nothing.
    """
    kind = _named(strategy) if isinstance(strategy, str) else strategy
    if budget < 1:
        raise UserError(f"received a budget of {budget}, expected 1 or more")
    if settings is None:
        settings = (kind.SETTINGS or SearchConfig)()
    evaluator = TableEvaluator(table, seed, budget)
    run_strategy(kind(table.space, settings, seed), evaluator)
    if not evaluator.asked:
        raise UserError("the strategy asked for no candidate's score, expected one at least")
    best, _ = max(evaluator.asked, key=lambda asked: asked[1])
    seconds = sum(table.at(number).seconds for number, _ in evaluator.asked)
    return Replay(tuple(evaluator.asked), table.at(best), seconds)


def _named(name: str) -> Replayed:
    known = replayed_strategies()
    if name not in known:
        raise UserError(
            f"received strategy {name!r}, expected one of {', '.join(known)}"
            f"{close(name, list(known))}"
        )
    return known[name]
