"""The settings of strategy ``evolution``; standard library only."""

from __future__ import annotations

from dataclasses import dataclass


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
    generations: int = 15
    crossover: float = 0.9
    mutation: float = 0.2
    epochs: int = 100
    patience: int = 10
    batch_size: int = 64
    max_lr: float = 1e-3
    width: int = 32
    subsets: int = 0

    def problems(self) -> list[tuple[str, str]]:
        """Return name and what is wrong of every value out of range."""
        smallest = 2 * (self.subsets + 1)
        bounds = {
            "population": (self.population >= smallest, f"at least {smallest}, 2 a population"),
            "generations": (self.generations >= 1, "at least 1"),
            "crossover": (0 <= self.crossover <= 1, "from 0 to 1"),
            "mutation": (0 <= self.mutation <= 1, "from 0 to 1"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "patience": (self.patience >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "max_lr": (0 <= self.max_lr < float("inf"), "0 or more"),
            "width": (1 <= self.width <= 65536, "from 1 to 65536"),
            "subsets": (self.subsets >= 0, "0 or more"),
        }
        return [
            (name, f"received {getattr(self, name)}, expected {wanted}")
            for name, (good, wanted) in bounds.items()
            if not good
        ]
