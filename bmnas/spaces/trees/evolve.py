"""Evolution itself: populations breed, exchange what they found, and are selected.

What a tree is worth is asked of a function: nothing here knows of networks or data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from bmnas.spaces.trees.operators import crossover, mutated, random_tree, survivors, tournament
from bmnas.spaces.trees.settings import EvolutionConfig
from bmnas.spaces.trees.tree import Tree

#: From trees, the number of the data (0: all of it, 1 and up: a subset) and the generation to what
#: each tree is worth when it is trained on these data.
Judge = Callable[[Sequence[Tree], int, int], Sequence[float]]

_DRAWS = 100  # for each first tree; a space of few features has few trees
_TRIES = 3  # to find two parents that differ


class Population:
    """Trees that compete, and what they are worth on the data number ``data``."""

    def __init__(self, data: int, members: Sequence[Tree], judge: Judge) -> None:
        self.data = data
        self.members = list(members)
        self._judge = judge
        self._scores: dict[Tree, float] = {}
        self._rate(self.members, 0)

    def best(self, count: int) -> list[Tree]:
        """Return up to ``count`` different members, the fittest first."""
        ranked = sorted(dict.fromkeys(self.members), key=self._scores.__getitem__, reverse=True)
        return ranked[:count]

    def next_generation(
        self,
        partners: Sequence[Tree],
        features: Sequence[str],
        settings: EvolutionConfig,
        draw: Random,
        generation: int,
    ) -> None:
        """Breed as many children as there are members, and keep as many of all.

        One parent of two wins a tournament, the other is drawn from ``partners``; where there are
        none it wins a tournament too.
        """
        children: list[Tree] = []
        while len(children) < len(self.members):
            pair = self._parents(partners, draw)
            if draw.random() < settings.crossover:
                pair = crossover(*pair, features, draw)
            children += [
                mutated(child, features, draw) if draw.random() < settings.mutation else child
                for child in pair
            ]
        children = children[: len(self.members)]
        self._rate(children, generation)
        self.members = survivors(self.members, children, self._scores.__getitem__, draw)

    def _parents(self, partners: Sequence[Tree], draw: Random) -> tuple[Tree, Tree]:
        fitness = self._scores.__getitem__
        for _ in range(_TRIES):
            first = tournament(self.members, fitness, draw)
            second = (
                draw.choice(list(partners)) if partners else tournament(self.members, fitness, draw)
            )
            if first != second:
                break
        return first, second

    def _rate(self, trees: Sequence[Tree], generation: int) -> None:
        scores = self._judge(trees, self.data, generation)
        self._scores.update(zip(trees, scores, strict=True))


def evolve(features: Sequence[str], settings: EvolutionConfig, draw: Random, judge: Judge) -> None:
    """Evolve trees over ``features``; what was found is what ``judge`` was asked for.

    With subsets there is a population for all data and one for each subset. Before every
    generation two knowledge bases are made: the best of the population of all data, and the best
    of the others. The parents that meet are one of the population and one of the other kind's
    base, so that trees wander both ways. In the end the best tree of each subset is judged on all
    data, where it may win.
    """
    sizes = shares(settings.population, settings.subsets + 1)
    trees = _first_trees(features, settings.population, draw)
    populations = [
        Population(data, [trees.pop() for _ in range(size)], judge)
        for data, size in enumerate(sizes)
    ]
    whole, *parts = populations
    for generation in range(1, settings.generations + 1):
        from_whole = whole.best(sizes[0]) if parts else []
        counts = shares(sizes[0], len(parts)) if parts else []
        from_parts = [
            tree for part, count in zip(parts, counts, strict=True) for tree in part.best(count)
        ]
        for population in populations:
            partners = from_parts if population is whole else from_whole
            population.next_generation(partners, features, settings, draw, generation)
    champions = [tree for part in parts for tree in part.best(1)]
    if champions:
        judge(champions, whole.data, settings.generations)


def shares(total: int, parts: int) -> list[int]:
    """Return ``total`` as a sum of ``parts`` nearly equal numbers, the larger ones first."""
    return [total // parts + (number < total % parts) for number in range(parts)]


def judged(settings: EvolutionConfig) -> int:
    """Return how many trees ``evolve`` asks for, those asked for again included."""
    return settings.population * (1 + settings.generations) + settings.subsets


def _first_trees(features: Sequence[str], count: int, draw: Random) -> list[Tree]:
    """Return ``count`` random trees, different ones where there are as many."""
    found: dict[Tree, None] = {}
    for _ in range(_DRAWS * count):
        found[random_tree(features, draw)] = None
        if len(found) == count:
            break
    trees = list(found)
    return [trees[number % len(trees)] for number in range(count)]
