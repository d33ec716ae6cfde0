"""Evolution with a made-up fitness, by ask and tell; what its short trainings are given."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import Scripted
from tiny_problems import tiny_problem

from bmnas.machine.errors import UserError
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.space import TreeSpace
from bmnas.spaces.trees.tree import leaves
from bmnas.strategies.evaluator import run_strategy, stratified
from bmnas.strategies.evolution import (
    Evolution,
    EvolutionConfig,
    Population,
    shares,
    survivors,
    tournament,
)
from bmnas.strategies.problem import Outcome
from bmnas.strategies.strategy import Candidate

FEATURES = tuple(f"{m}.{n}" for m in "abc" for n in range(4))


def richness(tree: Any) -> float:
    """One for every leaf, and half for every product."""
    return len(leaves(tree.tokens)) + tree.tokens.count("mul") / 2


def asked(
    settings: EvolutionConfig, seed: int = 0, features: tuple[str, ...] = FEATURES
) -> list[Candidate]:
    """Return all that an evolution asks for, in order."""
    found: list[Candidate] = []

    class Judge:
        def score(self, candidates: Sequence[Candidate]) -> list[float]:
            found.extend(candidates)
            return [richness(candidate.genotype) for candidate in candidates]

    run_strategy(Evolution(TreeSpace(features), settings, seed), Judge())
    return found


def test_the_recipe_is_the_default() -> None:
    recipe = EvolutionConfig()
    assert (recipe.population, recipe.generations) == (28, 15)
    assert (recipe.crossover, recipe.mutation) == (0.9, 0.2)
    assert (recipe.epochs, recipe.patience, recipe.batch_size, recipe.width) == (100, 10, 64, 32)
    assert Evolution(TreeSpace(FEATURES), recipe, 0).expected == 28 * 16
    assert not list(recipe.problems())
    assert list(EvolutionConfig(population=7, subsets=3).problems()) == [
        ("population", "received 7, expected at least 8, 2 a population")
    ]


@pytest.mark.parametrize("subsets", [0, 1, 3])
def test_there_is_a_population_for_each_subset(subsets: int) -> None:
    candidates = asked(EvolutionConfig(population=14, generations=4, subsets=subsets))
    first = Counter(c.data for c in candidates if c.note["generation"] == 0)
    assert first == Counter(dict(enumerate({0: [14], 1: [7, 7], 3: [4, 4, 3, 3]}[subsets])))
    assert {c.note["generation"] for c in candidates} == set(range(5))


def test_nothing_is_asked_twice() -> None:
    candidates = asked(EvolutionConfig(subsets=1))
    names = [(TreeSpace.canonical(c.genotype), c.data) for c in candidates]  # type: ignore[arg-type]
    assert len(set(names)) == len(names) < 28 * 16
    # Of two features there are five trees.
    assert len(asked(EvolutionConfig(), features=("a.1", "b.1"))) == 5


def test_the_same_seed_asks_for_the_same() -> None:
    settings = EvolutionConfig(population=9, generations=3, subsets=2)
    assert asked(settings, 1) == asked(settings, 1)
    assert asked(settings, 1) != asked(settings, 2)


@pytest.mark.parametrize("subsets", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_generations_become_fitter(subsets: int, seed: int) -> None:
    candidates = asked(EvolutionConfig(subsets=subsets), seed)
    first, last = (
        [richness(c.genotype) for c in candidates if c.note["generation"] in generations]
        for generations in ([0], [13, 14, 15])
    )
    assert statistics.mean(last) > statistics.mean(first) + 2


def test_the_best_are_different_and_in_order() -> None:
    x, y, z = "xyz"
    population = Population(1, [x, z, y, z], {x: 0.2, y: 0.7, z: 0.7})
    assert population.best(2) == [z, y]
    assert population.best(9) == [z, y, x]


def test_knowledge_wanders_both_ways() -> None:
    # Without crossover and mutation no tree is new: what one population asks for and did not begin
    # with has come from another.
    still = EvolutionConfig(population=16, generations=3, crossover=0.0, mutation=0.0, subsets=3)
    candidates = asked(still)
    begun = {
        data: {c.genotype for c in candidates if (c.data, c.note["generation"]) == (data, 0)}
        for data in range(4)
    }
    for data in range(4):
        later = {c.genotype for c in candidates if c.data == data and c.note["generation"]}
        strangers = later - begun[data]
        assert strangers
        if data == 0:
            assert strangers <= begun[1] | begun[2] | begun[3]
        first = {c.genotype for c in candidates if (c.data, c.note["generation"]) == (data, 1)}
        assert data == 0 or first - begun[data] <= begun[0]


def test_shares_are_nearly_equal() -> None:
    # Seven of the knowledge base of three subsets, as in the released program.
    assert shares(7, 3) == [3, 2, 2]
    assert shares(28, 4) == [7, 7, 7, 7]
    assert shares(5, 1) == [5]


X, Y, Z, W = (("a.1", "b.1", op) for op in ("add", "mul", "max", "average"))
SCORES = {X: 0.2, Y: 0.5, Z: 0.5, W: 0.9}


def test_the_fitter_of_two_wins_a_tournament() -> None:
    fitness = SCORES.__getitem__
    assert tournament([X, Y, Z, W], fitness, Scripted([X, Y])) == Y
    assert tournament([X, Y, Z, W], fitness, Scripted([W, Y])) == W
    assert tournament([X, Y, Z, W], fitness, Scripted([Z, Y])) == Z
    assert tournament([X, Y, Z, W], fitness, Scripted([Y, Z])) == Y


def test_survivors_win_their_place_or_are_the_best_of_all() -> None:
    fitness = SCORES.__getitem__
    # A child and a parent for each place: Y beats X; of equals the child Z stays.
    draw = Scripted(Y, X, Z, Y)
    assert survivors([X, Y], [Y, Z], fitness, draw) == [Y, Z]
    assert draw.done()
    # W was not drawn, and takes the place of the least fit.
    draw = Scripted(X, X, Z, Y)
    assert survivors([X, Y], [X, Z, W], fitness, draw) == [W, Z]
    # It is there already: nothing is replaced.
    draw = Scripted(W, X, X, X)
    assert survivors([X, Y], [X, W], fitness, draw) == [W, X]


def searched(folder: Path, **own: Any) -> tuple[Outcome[Any], list[dict[str, Any]]]:
    outcome = Evolution.search(tiny_problem(folder, strategy="evolution", own=own))
    lines = (folder / "history.jsonl").read_text().splitlines()
    return outcome, [json.loads(line) for line in lines]


@pytest.mark.parametrize("subsets", [0, 1])
def test_a_tree_is_trained_once_on_the_same_data(tmp_path: Path, subsets: int) -> None:
    outcome, records = searched(tmp_path, subsets=subsets, generations=6)
    trained = [(json.dumps(r["genotype"]), r.get("subset", 0)) for r in records]
    assert len(set(trained)) == len(trained) == outcome.candidates < 4 * 7
    assert isinstance(outcome.genotype, FusionTree)
    assert (outcome.genotype.width, outcome.genotype.length) == (6, 4)
    assert not [r for r in records if r["best"] and r.get("subset", 0)]


def test_subsets_are_smaller(tmp_path: Path) -> None:
    outcome, records = searched(tmp_path, subsets=3, population=8, generations=1, batch_size=4)
    # 14, 13 and 13 of 40 samples: 12 of each are seen in batches of 4.
    assert outcome.samples_seen == sum(r["epochs"] * (12 if r["subset"] else 40) for r in records)
    assert {record["subset"] for record in records} == {0, 1, 2, 3}


def test_more_subsets_than_samples_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="received 21 for 40 train samples, expected at most 20"):
        searched(tmp_path, subsets=21, population=44)


def test_subsets_are_disjoint_and_have_their_share_of_every_class() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0] * 9 + [1] * 4 + [2] * 2)[torch.randperm(15)]
    parts = stratified(labels, 3)
    assert sorted(torch.cat(parts).tolist()) == list(range(15))
    counts = torch.stack([labels[part].bincount(minlength=3) for part in parts])
    assert counts[:, 0].tolist() == [3, 3, 3]
    assert (counts.amax(0) - counts.amin(0)).tolist() == [0, 1, 1]
    assert not torch.equal(parts[0], stratified(labels, 3)[0])


def test_subsets_of_labels_that_occur_together_share_them() -> None:
    rows = torch.tensor([[1, 0], [1, 1], [0, 0]]).repeat(4, 1).float()
    parts = stratified(rows, 4)
    for part in parts:
        assert sorted(rows[part].tolist()) == [[0, 0], [1, 0], [1, 1]]
