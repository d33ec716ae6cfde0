"""Search strategies by name: how genotypes are found, in whichever space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.spaces.registry import space_named
from bmnas.strategies.bmnas import BMNAS
from bmnas.strategies.evolution import Evolution
from bmnas.strategies.mfas import MFAS
from bmnas.strategies.mmnas import MMnas
from bmnas.strategies.random import LocalSearch, RandomSearch, RegularisedEvolution
from bmnas.strategies.strategy import Candidate, ProposingStrategy, Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.NAME: strategy
    for strategy in (BMNAS, RandomSearch, LocalSearch, RegularisedEvolution, MFAS, Evolution, MMnas)
}

__all__ = [
    "STRATEGIES",
    "Candidate",
    "ProposingStrategy",
    "Strategy",
    "check_settings",
    "register_strategy",
    "settings_of_strategies",
    "strategy_named",
]


def register_strategy(strategy: type[Strategy]) -> type[Strategy]:
    """Make ``strategy`` known by its name; also a class decorator.

    Raises UserError where another strategy has the name.
    """
    if STRATEGIES.get(strategy.NAME, strategy) is not strategy:
        raise UserError(f"received strategy {strategy.NAME!r}, a name that is taken: use another")
    STRATEGIES[strategy.NAME] = strategy
    return strategy


def strategy_named(name: str) -> type[Strategy]:
    """Return the strategy called ``name``; raises UserError that lists those there are."""
    if name not in STRATEGIES:
        known = list(STRATEGIES)
        raise UserError(
            f"received strategy {name!r}, expected one of {', '.join(known)}{close(name, known)}"
        )
    return STRATEGIES[name]


def settings_of_strategies() -> dict[str, type[Any]]:
    """Return the classes of settings of the strategies that have a section of their own."""
    found = {name: strategy.SETTINGS for name, strategy in STRATEGIES.items()}
    return {name: kind for name, kind in found.items() if kind is not None}


def check_settings(strategy: str, space: str | None, given: Iterable[str]) -> None:
    """Raise UserError where a search does not read one of ``given``, settings of ``[search]``.

    ``space`` is the name of the space that was asked for, None for the strategy's own.
    """
    chosen = strategy_named(strategy)
    reads = {*chosen.READS, *space_named(space or chosen.SPACE).sizes()}
    unread = [f"--{name.replace('_', '-')}" for name in given if name not in reads]
    if not unread:
        return
    advice = "leave it out"
    if chosen.SETTINGS is not None:
        advice = (
            f"its settings are in section [{strategy}] of a preset: print one with bmnas presets, "
            "change it, and give the file to --preset"
        )
    raise UserError(
        f"strategy {strategy}: received {', '.join(unread)}, which it does not read; {advice}"
    )
