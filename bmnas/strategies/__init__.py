"""Search strategies by name: functions from a ``SearchProblem`` to an ``Outcome``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bmnas.found import Found
from bmnas.strategies.bilevel import search_bilevel
from bmnas.strategies.problem import Outcome, SearchProblem
from bmnas.strategies.random import search_random

STRATEGIES: Mapping[str, Callable[[SearchProblem], Outcome[Found]]] = {
    "bmnas": search_bilevel,
    "random": search_random,
}

__all__ = ["STRATEGIES", "Outcome", "SearchProblem"]
