"""Strategy ``bmnas``: a relaxed supernet (Algorithm 1), then short trainings that compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from bmnas.machine.errors import UserError
from bmnas.spaces.registry import space_named
from bmnas.strategies.settings import SearchConfig
from bmnas.strategies.strategy import Strategy

if TYPE_CHECKING:
    from bmnas.strategies.problem import Outcome, SearchProblem


class BMNAS(Strategy):
    """The search of BM-NAS; ``--seeds`` searches run at once."""

    NAME = "bmnas"
    TRAINS_SUPERNET = True
    PAPER: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "search": {"rerank": 0, "rivals": False, "ensemble": 1}
    }
    READS = frozenset({field.name for field in dataclasses.fields(SearchConfig)} - {"candidates"})

    @classmethod
    def check_space(cls, space: str | None) -> None:
        """Raise UserError for a space without a supernet."""
        if not space_named(space or cls.SPACE).HAS_SUPERNET:
            raise UserError(
                f"strategy bmnas: received space {space}, which has no supernet; expected space "
                f"{cls.SPACE}, or another strategy"
            )

    @classmethod
    def search(cls, problem: SearchProblem) -> Outcome[Any]:
        """Search by gradient descent on the relaxed architecture."""
        cls.check_space(problem.space)
        from bmnas.strategies.bilevel import search_bilevel

        return search_bilevel(problem)
