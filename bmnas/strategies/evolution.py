"""Evolution, on all data or by divide and conquer (DC-NAS, Liang et al., AAAI 2024)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import Annotated, Any, TypeVar

from bmnas.machine.schema import Range
from bmnas.strategies.strategy import Candidate, Proposals, ProposingStrategy
from bmnas.training.settings import BatchSize, Count, Probability, Rate, ShortTraining, Size

_DRAWS = 100  # for each first member; a space of few features has few genotypes
_TRIES = 3  # to find two parents that differ

M = TypeVar("M")

#: A step of the evolution that may ask for scores on its way.
_Asking = Generator[Sequence[Candidate], Sequence[float], None]


@dataclass(frozen=True)
class EvolutionConfig:
    """The recipe of DC-NAS (AAAI 2024), section ``[evolution]`` of a preset.

    ``population`` genotypes evolve for ``generations`` after the first. ``crossover`` and
    ``mutation`` are the probabilities for two parents and for a child. A candidate has vectors of
    ``width`` and is trained by Adam at ``max_lr``, which stays, for at most ``epochs``, until its
    validation score has not risen for ``patience`` of them. With ``subsets`` of 1 or more the train
    part is split into as many, with a population for each and one for all of it (divide and
    conquer); 0 is evolution on all of it.
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
        """Yield what is wrong with a population too small to have two members for each subset."""
        smallest = 2 * (self.subsets + 1)
        if self.population < smallest:
            wanted = f"at least {smallest}, 2 a population"
            yield "population", f"received {self.population}, expected {wanted}"


@dataclass
class Population:
    """Genotypes that compete on the data number ``data``, with their scores on these."""

    data: int
    members: list[Any]
    scores: dict[Any, float]

    def fitness(self, genotype: Any) -> float:
        """Return what ``genotype`` is worth here."""
        return self.scores[genotype]

    def best(self, count: int) -> list[Any]:
        """Return up to ``count`` different members, the fittest first."""
        ranked = sorted(dict.fromkeys(self.members), key=self.fitness, reverse=True)
        return ranked[:count]


class Evolution(ProposingStrategy):
    """Populations breed, exchange what they found, and are selected.

    With subsets there is a population for all data and one for each subset. Before every
    generation two knowledge bases are made: the best of the population of all data, and the best
    of the others. The parents that meet are one of the population and one of the other kind's
    base, so that genotypes wander both ways. In the end the best of each subset is judged on all
    data, where it may win. What has the same canonical name is judged once on the same data.
    """

    NAME = "evolution"
    SPACE = "trees"
    SETTINGS = EvolutionConfig
    READS = frozenset({"cache_dtype"})

    settings: EvolutionConfig

    def __init__(self, space: Any, settings: EvolutionConfig, seed: int) -> None:
        super().__init__(space, settings, seed)
        self._known: dict[tuple[str, int], float] = {}

    def propose(self) -> Proposals:
        """Let all populations live for the generations that are set."""
        settings = self.settings
        sizes = shares(settings.population, settings.subsets + 1)
        first = self._first(settings.population)
        populations = []
        for data, size in enumerate(sizes):
            population = Population(data, [first.pop() for _ in range(size)], {})
            yield from self._rate(population, population.members, 0)
            populations.append(population)
        whole, *parts = populations
        counts = shares(sizes[0], len(parts)) if parts else []
        for generation in range(1, settings.generations + 1):
            from_whole = whole.best(sizes[0]) if parts else []
            from_parts = [g for p, count in zip(parts, counts, strict=True) for g in p.best(count)]
            for population in populations:
                partners = from_parts if population is whole else from_whole
                yield from self._breed(population, partners, generation)
        yield from self._rate(whole, [part.best(1)[0] for part in parts], settings.generations)

    @property
    def expected(self) -> int:
        """All members of all generations, those that are known already included."""
        return self.settings.population * (1 + self.settings.generations) + self.settings.subsets

    @property
    def subsets(self) -> int:
        """Those of the settings."""
        return self.settings.subsets

    @classmethod
    def training(cls, settings: EvolutionConfig) -> ShortTraining:
        """Return a training with patience, a generation at once."""
        return ShortTraining(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            max_lr=settings.max_lr,
            min_lr=settings.max_lr,  # it stays
            together=settings.population,
            best=True,
            patience=settings.patience,
        )

    def _breed(self, population: Population, partners: Sequence[Any], generation: int) -> _Asking:
        """Make as many children as there are members, and keep as many of all.

        One parent of two wins a tournament, the other is drawn from ``partners``; where there are
        none it wins a tournament too.
        """
        children: list[Any] = []
        while len(children) < len(population.members):
            pair = self._parents(population, partners)
            if self.draw.random() < self.settings.crossover:
                pair = self.space.crossed(*pair, self.draw)
            children += [
                self.space.mutated(child, self.draw)
                if self.draw.random() < self.settings.mutation
                else child
                for child in pair
            ]
        children = children[: len(population.members)]
        yield from self._rate(population, children, generation)
        population.members = survivors(population.members, children, population.fitness, self.draw)

    def _parents(self, population: Population, partners: Sequence[Any]) -> tuple[Any, Any]:
        for _ in range(_TRIES):
            first = tournament(population.members, population.fitness, self.draw)
            second = (
                self.draw.choice(list(partners))
                if partners
                else tournament(population.members, population.fitness, self.draw)
            )
            if first != second:
                break
        return first, second

    def _rate(self, population: Population, genotypes: Sequence[Any], generation: int) -> _Asking:
        """Ask for the scores of ``genotypes`` that are not known yet."""
        data = population.data
        names = {genotype: (self.space.canonical(genotype), data) for genotype in genotypes}
        new = {name: g for g, name in names.items() if name not in self._known}
        if new:
            note = {"generation": generation}
            scores = yield [Candidate(genotype, data, note=note) for genotype in new.values()]
            self._known.update(zip(new, scores, strict=True))
        population.scores.update({g: self._known[name] for g, name in names.items()})

    def _first(self, count: int) -> list[Any]:
        """Return ``count`` random genotypes, different ones where there are as many."""
        found: dict[Any, None] = {}
        for _ in range(_DRAWS * count):
            if len(found) < count:
                found[self.space.sample(self.draw)] = None
        return list(islice(cycle(found), count))


def shares(total: int, parts: int) -> list[int]:
    """Return ``total`` as a sum of ``parts`` nearly equal numbers, the larger ones first."""
    return [total // parts + (number < total % parts) for number in range(parts)]


def tournament(population: Sequence[M], fitness: Callable[[M], float], draw: Random) -> M:
    """Return the fitter of two members drawn from ``population``; of equals the one drawn first."""
    return max(draw.sample(list(population), 2), key=fitness)


def survivors(
    parents: Sequence[M], children: Sequence[M], fitness: Callable[[M], float], draw: Random
) -> list[M]:
    """Return the next population, of the size of ``parents``.

    For every place a child and a parent are drawn and the fitter one is taken, of equals the
    child. The fittest of all takes the place of the least fit, the first of equals, unless it is
    among them.
    """
    chosen = [
        max((draw.choice(list(children)), draw.choice(list(parents))), key=fitness) for _ in parents
    ]
    fittest = max((*parents, *children), key=fitness)
    if fittest not in chosen:
        chosen[chosen.index(min(chosen, key=fitness))] = fittest
    return chosen
