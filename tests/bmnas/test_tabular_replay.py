from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tables import made_table

from bmnas.lab.tables import Table, load, replay, replayed_strategies
from bmnas.machine.errors import UserError
from bmnas.spaces.cells.canonical import canonical
from bmnas.strategies.strategy import Candidate, Proposals, ProposingStrategy


@pytest.fixture(scope="module")
def table() -> Table:
    return made_table()


@pytest.mark.parametrize("strategy", replayed_strategies())
def test_a_replay_depends_on_its_seed_alone(table: Table, strategy: str, tmp_path: Path) -> None:
    first = replay(table, strategy, seed=3, budget=60)
    table.save(tmp_path / "table.npz")
    assert replay(load(tmp_path / "table.npz"), strategy, seed=3, budget=60) == first
    assert replay(table, strategy, seed=4, budget=60).asked != first.asked
    assert len(first.asked) == 60
    assert first.seconds == 30
    # A longer one begins alike.
    assert replay(table, strategy, seed=3, budget=80).asked[:60] == first.asked


@pytest.mark.parametrize("strategy", replayed_strategies())
def test_a_replay_ends_with_the_best_that_it_saw(table: Table, strategy: str) -> None:
    found = replay(table, strategy, seed=0, budget=40)
    for number, score in found.asked:
        assert score in table.at(number).validation
    best = max(score for _, score in found.asked)
    assert next(n for n, score in found.asked if score == best) == found.best.number


def test_strategies_that_look_find_more_than_chance(table: Table) -> None:
    def mean(strategy: str) -> float:
        replays = (replay(table, strategy, seed=seed, budget=100) for seed in range(10))
        return sum(table.regret(found.best) for found in replays) / 10

    regrets = {strategy: mean(strategy) for strategy in ("local", "evolution", "random")}
    assert regrets["local"] < regrets["random"] / 2
    assert regrets["evolution"] < regrets["random"] / 2


def test_mfas_goes_from_one_step_to_two(table: Table) -> None:
    found = replay(table, "mfas", seed=0, budget=10_000)
    live = [len(table.at(number).genotype.cells[0].live_steps()) for number, _ in found.asked]
    first = len(table.space.unfold([], 0))
    assert set(live[:first]) == {0, 1}
    assert 2 in live[first : first + 15]
    assert len(found.asked) == first + 5 * 15


def test_local_search_climbs_and_begins_again(table: Table) -> None:
    found = replay(table, "local", seed=0, budget=400)
    genotypes = [table.at(number).genotype for number, _ in found.asked]
    # One that is no neighbour of anything seen before is a new beginning.
    seen: set[str] = set()
    begun = 0
    for genotype in genotypes:
        name = canonical(genotype)
        begun += name not in seen
        seen |= {canonical(other) for other in table.space.neighbours(genotype)} | {name}
    assert 1 < begun < 40


class Stubborn(ProposingStrategy):
    """Asks for one candidate again and again, three at a time."""

    NAME = "stubborn"

    def propose(self) -> Proposals:
        here = self.space.sample(self.draw)
        while True:
            yield [Candidate(here)] * 3


class Nothing(ProposingStrategy):
    NAME = "nothing"

    def propose(self) -> Proposals:
        yield from ()


def test_trainings_of_a_candidate_are_drawn_anew_until_the_budget_is_spent(table: Table) -> None:
    found = replay(table, Stubborn, seed=0, budget=50)
    assert len(found.asked) == 50
    assert {score for _, score in found.asked} == set(found.best.validation)


def test_wrong_replays_are_one_clear_line(table: Table) -> None:
    with pytest.raises(UserError, match="did you mean 'random'"):
        replay(table, "randon", seed=0, budget=5)
    with pytest.raises(UserError, match="received strategy 'bmnas', expected one of random"):
        replay(table, "bmnas", seed=0, budget=5)
    with pytest.raises(UserError, match="budget of 0"):
        replay(table, "random", seed=0, budget=0)
    with pytest.raises(UserError, match="asked for no candidate"):
        replay(table, Nothing, seed=0, budget=5)
