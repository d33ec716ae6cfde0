"""Searches that take one candidate after the other, until their budget is spent."""

from __future__ import annotations

from collections import deque

from bmnas.spaces.architecture import Architecture
from bmnas.strategies.strategy import Candidate, Proposals, ProposingStrategy

_POPULATION = 20
_SAMPLE = 5


class RandomSearch(ProposingStrategy):
    """Candidates drawn evenly."""

    NAME = "random"

    def propose(self) -> Proposals:
        """Draw without end."""
        while True:
            yield [Candidate(self.space.sample(self.draw))]


class LocalSearch(ProposingStrategy):
    """Go to the first better neighbour; where there is none, begin again somewhere else."""

    NAME = "local"

    def propose(self) -> Proposals:
        """Climb without end."""
        while True:
            waiting, best = [self.space.sample(self.draw)], float("-inf")
            while waiting:
                genotype = waiting.pop()
                (score,) = yield [Candidate(genotype)]
                if score > best:
                    best, waiting = score, self.space.neighbours(genotype)
                    self.draw.shuffle(waiting)


class RegularisedEvolution(ProposingStrategy):
    """Mutate the best of a sample of a population whose oldest member dies (Real et al. 2019)."""

    NAME = "regularised"

    def propose(self) -> Proposals:
        """Breed without end."""
        population: deque[tuple[float, Architecture]] = deque()
        while True:
            if len(population) < _POPULATION:
                child = self.space.sample(self.draw)
            else:
                chosen = self.draw.sample(range(_POPULATION), _SAMPLE)
                parent = max((population[n] for n in chosen), key=lambda member: member[0])[1]
                child = self.space.mutated(parent, self.draw)
                population.popleft()
            (score,) = yield [Candidate(child)]
            population.append((score, child))
