"""Search strategies by name: functions from a ``SearchProblem`` to an ``Outcome``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Genotype
from bmnas.strategies.bilevel import search_bilevel
from bmnas.strategies.evolution import search_evolution
from bmnas.strategies.mfas import search_mfas
from bmnas.strategies.problem import Outcome, SearchProblem
from bmnas.strategies.random import search_random
from bmnas.strategies.several import search_several


def _search_bmnas(problem: SearchProblem) -> Outcome[Genotype]:
    return search_several(problem) if problem.seeds > 1 else search_bilevel(problem)


STRATEGIES: Mapping[str, Callable[[SearchProblem], Outcome[Architecture]]] = {
    "bmnas": _search_bmnas,
    "random": search_random,
    "mfas": search_mfas,
    "evolution": search_evolution,
}

__all__ = ["STRATEGIES", "Outcome", "SearchProblem"]
