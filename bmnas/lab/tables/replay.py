"""Replaying searches on a table: what a strategy would train is looked up, in no time.

A strategy is a function of a ``Problem``: it draws candidates, or takes neighbours of some, and
asks for their scores until the budget is spent, which ends it. To add one is to write that
function, and to name it in ``STRATEGIES`` if the command line shall know it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from bmnas.lab.tables.sequential import sequential_search
from bmnas.lab.tables.table import Entry, Table
from bmnas.machine.errors import UserError, close
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.space import CellSpace

_POPULATION = 20
_SAMPLE = 5


class BudgetSpentError(Exception):
    """A strategy asked for one more score than its budget allows; ``replay`` catches it."""


class Problem:
    """What a replayed strategy sees of a table: candidates, and their validation scores.

    ``random`` is where a strategy takes all its chances from.
    """

    def __init__(self, table: Table, seed: int, budget: int) -> None:
        self.random = Random(seed)
        self.asked: list[tuple[int, float]] = []
        self._table = table
        self._budget = budget
        self._noise = Random(f"{seed} training")

    @property
    def space(self) -> CellSpace:
        """All genotypes that may be asked for."""
        return self._table.space

    def draw(self) -> Genotype:
        """Return a genotype drawn as strategy ``random`` of ``bmnas search`` draws one."""
        return self._table.space.sample(self.random)

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """Return the genotypes that differ from ``genotype`` in one choice."""
        return self._table.space.neighbours(genotype)

    def score(self, genotype: Genotype) -> float:
        """Return the validation score of one training of ``genotype``, one unit of the budget.

        Of the entry's trainings one is drawn, each time anew: a search trains a candidate once.
        Raises BudgetSpentError when nothing is left.
        """
        if len(self.asked) == self._budget:
            raise BudgetSpentError
        entry = self._table.entry(genotype)
        score = entry.validation[self._noise.randrange(self._table.seeds)]
        self.asked.append((entry.number, score))
        return score


Strategy = Callable[[Problem], None]


def random_search(problem: Problem) -> None:
    """Ask for drawn candidates."""
    while True:
        problem.score(problem.draw())


def local_search(problem: Problem) -> None:
    """Go to the first better neighbour; where there is none, begin again somewhere else."""
    while True:
        waiting, best = [problem.draw()], float("-inf")
        while waiting:
            genotype = waiting.pop()
            score = problem.score(genotype)
            if score > best:
                best, waiting = score, problem.neighbours(genotype)
                problem.random.shuffle(waiting)


def regularised_evolution(problem: Problem) -> None:
    """Mutate the best of a sample of a population whose oldest member dies (Real et al. 2019)."""
    population: deque[tuple[float, Genotype]] = deque()
    while True:
        if len(population) < _POPULATION:
            child = problem.draw()
        else:
            chosen = problem.random.sample(range(_POPULATION), _SAMPLE)
            parent = max((population[n] for n in chosen), key=lambda member: member[0])[1]
            child = problem.random.choice(problem.neighbours(parent))
            population.popleft()
        population.append((problem.score(child), child))


STRATEGIES: Mapping[str, Strategy] = {
    "random": random_search,
    "local": local_search,
    "evolution": regularised_evolution,
    "mfas": sequential_search,
}


@dataclass(frozen=True)
class Replay:
    """What a replayed search asked for, and what it ends with.

    ``asked`` holds the numbers of the entries in order and the scores that it saw; ``seconds`` is
    what their trainings took when the table was built.
    """

    asked: tuple[tuple[int, float], ...]
    best: Entry
    seconds: float


def replay(table: Table, strategy: str | Strategy, *, seed: int, budget: int) -> Replay:
    """Run ``strategy`` on ``table`` until it has asked for ``budget`` scores.

    It ends with the candidate whose score was best when it saw it; the first of equals. Raises
    UserError for a strategy that has no name here, a budget below 1, or a strategy that asks for
    nothing.
    """
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise UserError(
                f"received strategy {strategy!r}, expected one of {', '.join(STRATEGIES)}"
                f"{close(strategy, list(STRATEGIES))}"
            )
        strategy = STRATEGIES[strategy]
    if budget < 1:
        raise UserError(f"received a budget of {budget}, expected 1 or more")
    problem = Problem(table, seed, budget)
    with contextlib.suppress(BudgetSpentError):
        strategy(problem)
    if not problem.asked:
        raise UserError("the strategy asked for no candidate's score, expected one at least")
    best, _ = max(problem.asked, key=lambda asked: asked[1])
    seconds = sum(table.at(number).seconds for number, _ in problem.asked)
    return Replay(tuple(problem.asked), table.at(best), seconds)
