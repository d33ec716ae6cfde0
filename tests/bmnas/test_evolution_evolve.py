"""Evolution with a made-up fitness."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from bmnas.spaces.trees.evolve import Population, evolve, judged, shares
from bmnas.spaces.trees.settings import EvolutionConfig
from bmnas.spaces.trees.tree import Tree, leaves

FEATURES = tuple(f"{m}.{n}" for m in "abc" for n in range(4))
Asked = list[tuple[tuple[Tree, ...], int, int]]


def richness(tree: Tree) -> float:
    """One for every leaf, and half for every product."""
    return len(leaves(tree)) + tree.count("mul") / 2


def asked(settings: EvolutionConfig, seed: int = 0, features: Sequence[str] = FEATURES) -> Asked:
    """Return all questions of an evolution, in order."""
    calls: Asked = []

    def judge(trees: Sequence[Tree], data: int, generation: int) -> list[float]:
        calls.append((tuple(trees), data, generation))
        return [richness(tree) for tree in trees]

    evolve(features, settings, Random(seed), judge)
    return calls


def test_the_recipe_is_the_default() -> None:
    recipe = EvolutionConfig()
    assert (recipe.population, recipe.generations) == (28, 15)
    assert (recipe.crossover, recipe.mutation) == (0.9, 0.2)
    assert (recipe.epochs, recipe.patience, recipe.batch_size, recipe.width) == (100, 10, 64, 32)
    assert judged(recipe) == 28 * 16
    assert recipe.problems() == []


@pytest.mark.parametrize("subsets", [0, 1, 3])
def test_a_population_of_one_size_is_judged_in_every_generation(subsets: int) -> None:
    settings = EvolutionConfig(population=14, generations=4, subsets=subsets)
    calls = asked(settings)
    counts = Counter((data, generation) for trees, data, generation in calls for _ in trees)
    sizes = {0: [14], 1: [7, 7], 3: [4, 4, 3, 3]}[subsets]
    for generation in range(5):
        for data, size in enumerate(sizes):
            # In the end the best of the subsets are judged on all data too.
            champions = subsets if (data, generation) == (0, 4) else 0
            assert counts[data, generation] == size + champions
    assert counts.total() == judged(settings)


def test_the_first_trees_differ_where_there_are_as_many() -> None:
    first, *_ = asked(EvolutionConfig(population=28, generations=1))
    assert len(set(first[0])) == 28
    # Of two features there are five trees.
    first, *_ = asked(EvolutionConfig(population=28, generations=1), features=("a.1", "b.1"))
    assert (len(first[0]), len(set(first[0]))) == (28, 5)


def test_the_same_seed_evolves_the_same_trees() -> None:
    settings = EvolutionConfig(population=9, generations=3, subsets=2)
    assert asked(settings, 1) == asked(settings, 1)
    assert asked(settings, 1) != asked(settings, 2)


@pytest.mark.parametrize("subsets", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_generations_become_fitter(subsets: int, seed: int) -> None:
    calls = asked(EvolutionConfig(subsets=subsets), seed)
    first, last = (
        [richness(tree) for trees, _, at in calls if at == generation for tree in trees]
        for generation in (0, 15)
    )
    assert statistics.mean(last) > statistics.mean(first) + 2
    assert statistics.median(last) > statistics.median(first)


def test_the_best_of_a_population_is_never_lost() -> None:
    draw = Random(0)
    rate = {}

    def judge(trees: Sequence[Tree], data: int, generation: int) -> list[float]:
        return [rate.setdefault(tree, draw.random()) for tree in trees]

    first = asked(EvolutionConfig(population=6, generations=1))[0][0]
    population = Population(0, first, judge)
    for generation in range(1, 20):
        before = rate[population.best(1)[0]]
        population.next_generation([], FEATURES, EvolutionConfig(), draw, generation)
        assert rate[population.best(1)[0]] >= before
        assert len(population.members) == 6


def test_the_best_are_different_and_in_order() -> None:
    x, y, z = (("a.1", "b.1", op) for op in ("add", "mul", "max"))
    scores = {x: 0.2, y: 0.7, z: 0.7}
    population = Population(1, [x, z, y, z], lambda trees, *_: [scores[tree] for tree in trees])
    assert population.best(2) == [z, y]
    assert population.best(9) == [z, y, x]


def test_every_other_child_comes_from_the_other_knowledge_base() -> None:
    calls: Asked = []

    def judge(trees: Sequence[Tree], data: int, generation: int) -> list[float]:
        calls.append((tuple(trees), data, generation))
        return [richness(tree) for tree in trees]

    own = asked(EvolutionConfig(population=5, generations=1), 1)[0][0]
    others = asked(EvolutionConfig(population=3, generations=1), 2)[0][0]
    # Neither crossed nor mutated, children are their parents.
    still = EvolutionConfig(crossover=0.0, mutation=0.0)
    population = Population(2, own, judge)
    population.next_generation(others, FEATURES, still, Random(0), 7)
    children, data, generation = calls[-1]
    assert (len(children), data, generation) == (5, 2, 7)
    assert set(children[0::2]) <= set(own)
    assert set(children[1::2]) <= set(others)


def test_knowledge_wanders_both_ways() -> None:
    # Without crossover and mutation no tree is new: what one population judges and did not begin
    # with has come from another.
    still = EvolutionConfig(population=16, generations=3, crossover=0.0, mutation=0.0, subsets=3)
    calls = asked(still)
    begun = {data: set(trees) for trees, data, generation in calls if generation == 0}
    for data in range(4):
        later = {t for trees, d, g in calls[:-1] if d == data and g for t in trees}
        strangers = later - begun[data]
        assert strangers
        if data == 0:
            assert strangers <= begun[1] | begun[2] | begun[3]
    for data in (1, 2, 3):
        first = {t for trees, d, g in calls if d == data and g == 1 for t in trees}
        assert first - begun[data] <= begun[0]


def test_shares_are_nearly_equal() -> None:
    # Seven of the knowledge base of three subsets, as in the released program.
    assert shares(7, 3) == [3, 2, 2]
    assert shares(28, 4) == [7, 7, 7, 7]
    assert shares(5, 1) == [5]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"population": 1}, ("population", "received 1, expected at least 2, 2 a population")),
        (
            {"population": 7, "subsets": 3},
            ("population", "received 7, expected at least 8, 2 a population"),
        ),
        ({"mutation": 1.1}, ("mutation", "received 1.1, expected from 0 to 1")),
        ({"crossover": -0.1}, ("crossover", "received -0.1, expected from 0 to 1")),
        ({"patience": 0}, ("patience", "received 0, expected at least 1")),
        ({"batch_size": 1}, ("batch_size", "received 1, expected at least 2")),
        ({"subsets": -1}, ("subsets", "received -1, expected 0 or more")),
        ({"max_lr": float("nan")}, ("max_lr", "received nan, expected 0 or more")),
        ({"width": 0}, ("width", "received 0, expected from 1 to 65536")),
    ],
)
def test_settings_out_of_range_are_named(
    changes: dict[str, float], problem: tuple[str, str]
) -> None:
    assert problem in EvolutionConfig(**changes).problems()  # type: ignore[arg-type]
