"""The settings of strategy ``evolution``; standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from bmnas.machine.schema import Range
from bmnas.training.settings import BatchSize, Count, Probability, Rate, Size


@dataclass(frozen=True)
class EvolutionConfig:
    """The recipe of DC-NAS (AAAI 2024), section ``[evolution]`` of a preset.

    ``population`` trees evolve for ``generations`` after the first. ``crossover`` and ``mutation``
    are the probabilities for two parents and for a child. A candidate has vectors of ``width`` and
    is trained by Adam at ``max_lr``, which stays, for at most ``epochs``, until its validation
    score has not risen for ``patience`` of them. With ``subsets`` of 1 or more the train part is
    split into as many, with a population for each and one for all of it (divide and conquer); 0 is
    evolution on all of it.
    """

    population: int = 28
    generations: Count = 15
    crossover: Probability = 0.9
    mutation: Probability = 0.2
    epochs: Count = 100
    patience: Count = 10
    batch_size: BatchSize = 64
    max_lr: Rate = 1e-3
    width: Size = 32
    subsets: Annotated[int, Range(0)] = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with a population too small to have two trees for each subset."""
        smallest = 2 * (self.subsets + 1)
        if self.population < smallest:
            wanted = f"at least {smallest}, 2 a population"
            yield "population", f"received {self.population}, expected {wanted}"
