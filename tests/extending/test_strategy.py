"""A strategy of one's own, in this file alone: searched, trained, exported, replayed on a table.

Successive doubling: draw some candidates, and go on with twice as many neighbours of the best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bmnas_export import export_bundle
from command_line import bmnas_command, write_tiny_preset
from tiny_tables import made_table
from tiny_tasks import CONFIG, tiny_task, write_tiny_task

import bmnas
from bmnas.lab.tables import replay
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config
from bmnas.strategies import STRATEGIES, Candidate, ProposingStrategy, register_strategy
from bmnas.strategies.random import RandomSearch
from bmnas.strategies.strategy import Proposals
from bmnas.training.settings import Count, ShortTraining


@dataclass(frozen=True)
class DoublingConfig:
    """Section ``[doubling]`` of a preset."""

    first: Count = 2
    rounds: Count = 2
    epochs: Count = 1


class Doubling(ProposingStrategy):
    NAME = "doubling"
    SETTINGS = DoublingConfig
    READS = frozenset({"cache_dtype"})

    settings: DoublingConfig

    def propose(self) -> Proposals:
        genotypes = [self.space.sample(self.draw) for _ in range(self.settings.first)]
        for number in range(self.settings.rounds):
            scores = yield [Candidate(g, note={"round": number}) for g in genotypes]
            best = max(zip(scores, range(len(scores)), strict=True))[1]
            neighbours = self.space.neighbours(genotypes[best])
            self.draw.shuffle(neighbours)
            genotypes = neighbours[: 2 * len(genotypes)]

    @property
    def expected(self) -> int:
        return self.settings.first * (2**self.settings.rounds - 1)

    @classmethod
    def training(cls, settings: DoublingConfig) -> ShortTraining:
        return ShortTraining(settings.epochs, batch_size=16, max_lr=1e-2, min_lr=1e-3, together=4)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_strategy(Doubling)
    yield
    del STRATEGIES["doubling"]


@pytest.mark.usefixtures("pictures")
def test_a_strategy_of_its_own_goes_all_the_way(tmp_path: Path) -> None:
    task = tiny_task()
    config = Config(CONFIG.unimodal, CONFIG.search, CONFIG.train).override("doubling", rounds=2)
    found = bmnas.search(task, run=tmp_path / "run", config=config, strategy="doubling")
    assert found.metrics["search"]["candidates"] == 2 + 4
    assert (tmp_path / "run" / "architecture.svg").is_file()
    again = bmnas.search(
        task, run=tmp_path / "run", config=config, strategy="doubling", existing="resume"
    )
    assert again.genotype == found.genotype

    trained = bmnas.train(tmp_path / "run" / "genotype.json", task, run=tmp_path / "run")
    network = bmnas.load_network(trained.network)
    assert export_bundle(network, task, tmp_path / "bundle").parity.passed


def test_it_looks_in_other_spaces_and_on_tables(tmp_path: Path) -> None:
    config = Config(CONFIG.unimodal, CONFIG.search, CONFIG.train)
    found = bmnas.search(
        tiny_task(), run=tmp_path / "run", config=config, strategy="doubling", space="trees"
    )
    assert found.genotype.FORMAT == "bmnas.tree/1"
    table = made_table()
    replayed = replay(table, "doubling", seed=0, budget=100, settings=DoublingConfig(rounds=4))
    assert len(replayed.asked) == 2 + 4 + 8 + 16
    assert replayed == replay(table, Doubling, seed=0, budget=30, settings=DoublingConfig(rounds=4))


def test_the_command_line_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_task(tmp_path)
    preset = write_tiny_preset(tmp_path)
    words = ("search", "--task", "task.toml", "--preset", preset, "--strategy", "doubling")
    printed = bmnas_command(*words, "--epochs", "3")
    assert printed.status == 2
    assert "strategy doubling: received --epochs, which it does not read" in printed.err
    preset_file = Path(preset)
    preset_file.write_text(preset_file.read_text() + "\n[doubling]\nfirst = 0\n")
    printed = bmnas_command(*words)
    assert printed.status == 2
    assert "doubling.first: received 0, expected at least 1" in printed.err


def test_a_name_that_is_taken_is_refused() -> None:
    class Other(RandomSearch):
        NAME = "doubling"

    with pytest.raises(UserError, match="received strategy 'doubling', a name that is taken"):
        register_strategy(Other)
