"""A random generator that draws what a test tells it to, in the order of the test."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any


class Scripted(Random):
    """Draws ``answers`` one by one, each of which must be one that could be drawn."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(0)
        self._answers = list(answers)

    def _next(self) -> Any:
        assert self._answers, "more was drawn than the test foresaw"
        return self._answers.pop(0)

    def done(self) -> bool:
        """Tell whether everything was drawn."""
        return not self._answers

    def random(self) -> float:
        answer: float = self._next()
        assert 0 <= answer < 1
        return answer

    def randrange(self, stop: int, *rest: Any) -> int:  # type: ignore[override]
        answer: int = self._next()
        assert answer in range(stop)
        return answer

    def randint(self, a: int, b: int) -> int:
        answer: int = self._next()
        assert a <= answer <= b
        return answer

    def choice(self, seq: Sequence[Any]) -> Any:
        answer = self._next()
        assert answer in seq
        return answer

    def sample(self, population: Sequence[Any], k: int, **rest: Any) -> list[Any]:  # type: ignore[override]
        answer: list[Any] = self._next()
        assert len(answer) == k
        left = list(population)
        for each in answer:
            left.remove(each)
        return answer
