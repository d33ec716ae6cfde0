from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bmnas
from bmnas.lab.job import backbones_jobs
from bmnas.lab.sweep import read_sweep, sweep_jobs
from bmnas.machine.errors import UserError


def plan(tmp_path: Path, text: str = "", *grid: str, **given: Any) -> list[Any]:
    path = None
    if text:
        path = tmp_path / "sweep.toml"
        path.write_text(text)
    return read_sweep(path, given, grid)


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    trials = plan(
        tmp_path,
        """
        task = "digits"
        search.epochs = 2
        [grid]
        seed = [0, 1]
        search.channels = [16, 32]
        """,
    )
    assert [trial.name for trial in trials] == [
        "seed-0_channels-16",
        "seed-0_channels-32",
        "seed-1_channels-16",
        "seed-1_channels-32",
    ]
    assert trials[1].settings == {
        "task": "digits",
        "strategy": "bmnas",
        "seed": 0,
        "search.channels": 32,
        "search.epochs": 2,
    }
    config = trials[1].config(bmnas.load_task("digits"))
    assert (config.search.channels, config.search.epochs, config.preset) == (32, 2, "default")
    assert config.search.batch_size == 64  # of the task


def test_a_list_stands_beside_a_grid(tmp_path: Path) -> None:
    text = """
        [grid]
        seed = [0, 1]
        [[trial]]
        name = "wide"
        search.channels = 128
        [[trial]]
        strategy = "random"
        """
    names = [trial.name for trial in plan(tmp_path, text)]
    assert names == ["seed-0", "seed-1", "wide", "strategy-random"]


def test_options_go_before_the_file(tmp_path: Path) -> None:
    text = 'task = "digits"\npreset = "quick"\n[grid]\nseed = [0, 1]\n'
    (trial,) = plan(tmp_path, text, "seed=7", "task=a/task.toml", preset="small")
    assert trial.name == "seed-7_task-a"
    assert (trial.settings["preset"], trial.settings["task"]) == ("small", "a/task.toml")
    assert plan(tmp_path)[0].name == "trial"


def test_values_are_numbers_flags_and_words(tmp_path: Path) -> None:
    trials = plan(tmp_path, "", "search.max_lr=1e-3, 2e-3", "train.freeze_backbones=true")
    assert [trial.settings["search.max_lr"] for trial in trials] == [1e-3, 2e-3]
    assert trials[0].settings["train.freeze_backbones"] is True
    assert trials[0].name == "max_lr-0.001_freeze_backbones-true"


def test_names_of_two_sections_do_not_meet(tmp_path: Path) -> None:
    (trial,) = plan(tmp_path, "", "search.epochs=1", "train.epochs=2")
    assert trial.name == "search.epochs-1_train.epochs-2"


@pytest.mark.parametrize(
    ("text", "grid", "message"),
    [
        ("chanels = 3", [], r"sweep\.toml: received 'chanels', expected task, data"),
        ("search.chanels = 3", [], "did you mean 'search.channels'"),
        ("[grid]\nseed = 3", [], r"\[grid\] seed: received 3, expected a list"),
        ("[grid]\nseed = []", [], r"\[grid\] seed: received \[\], expected a list"),
        ("[grid]\nseed = ['a']", [], r"\[grid\] seed: received 'a', expected int"),
        ("seed = true", [], "seed: received True, expected int"),
        ("trial = 3", [], r"trial: received 3, expected tables \[\[trial\]\]"),
        ("[[trial]]\nname = '../x'", [], r"name: received '\.\./x', expected the name of a folder"),
        ("[[trial]]\nname = '.x'", [], r"name: received '\.x', expected the name of a folder"),
        ("[[trial]]\n[[trial]]", [], "received two trials called trial"),
        ("", ["seed"], "--set: received 'seed', expected KEY=VALUE"),
        ("", ["seed="], "--set: received 'seed=', expected KEY=VALUE"),
        ("", ["sed=1"], "--set: received 'sed', .* did you mean 'seed'"),
        ("", ["seed=1,[", ""], r"--set seed: received '\[', expected int"),
        ("", ["seed=one"], "--set seed: received 'one', expected int"),
        ("", [f"seed={','.join(map(str, range(200)))}", "search.cells=" + "1," * 99 + "1"],
         "received a sweep of 20,000 runs, expected at most 10,000"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood(
    tmp_path: Path, text: str, grid: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(tmp_path, text, *grid)


def test_a_value_out_of_range_names_the_trial(tmp_path: Path) -> None:
    (trial,) = plan(tmp_path, "", "search.channels=0")
    with pytest.raises(UserError, match=r"trial channels-0: search\.channels: received 0"):
        trial.config(bmnas.load_task("digits"))


def unread(tmp_path: Path, text: str, *grid: str, train: bool = False) -> list[Any]:
    return sweep_jobs(plan(tmp_path, text, *grid), train=train)


@pytest.mark.parametrize(
    ("text", "grid", "message"),
    [
        ("", ["strategy=bmnas,random", "search.epochs=1,2"],
         "strategy random: received --epochs, which it does not read"),
        ("", ["strategy=evolution", "search.channels=8,16"], "received --channels, which it"),
        ("", ["mfas.kept=2,3"], "received mfas.kept, which strategy bmnas does not read"),
        ("", ["train.epochs=1,2"], "received train.epochs, .* count with --train"),
    ],
)  # fmt: skip
def test_a_setting_that_changes_nothing_is_told(
    tmp_path: Path, text: str, grid: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        unread(tmp_path, text, *grid)


def test_what_one_strategy_reads_may_be_set_for_all(tmp_path: Path) -> None:
    both = "search.epochs = 2\nevolution.generations = 3\nstrategy = 'evolution'\n[[trial]]"
    jobs = unread(tmp_path, f"{both}\n[[trial]]\nstrategy = 'bmnas'")
    assert [job.config.to_dict()["evolution"]["generations"] for job in jobs] == [3, 3]
    (job,) = unread(tmp_path, "", "search.rerank=2", "search.candidate_epochs=1")
    assert job.config.search.candidate_epochs == 1
    (job,) = unread(tmp_path, "", "train.epochs=3", train=True)
    assert (job.stages, job.config.train.epochs) == (("search", "train"), 3)


def test_the_settings_of_a_strategy_reach_its_process(tmp_path: Path) -> None:
    jobs = unread(tmp_path, "", "strategy=mfas", "mfas.kept=2,3")
    orders = [job.order(tmp_path, "cpu") for job in jobs]
    assert [order["job"]["config"]["mfas"]["kept"] for order in orders] == [2, 3]
    assert jobs[0].backbones == jobs[1].backbones


def test_networks_of_tokens_have_settings_and_backbones_of_their_own(tmp_path: Path) -> None:
    jobs = unread(
        tmp_path, "[[trial]]\n[[trial]]\nstrategy = 'mmnas'\n[[trial]]\nstrategy = 'random'"
    )
    cells, tokens, others = jobs
    assert (cells.config.train.dropout, tokens.config.train.dropout) == (0.3, 0)
    assert cells.backbones == others.backbones != tokens.backbones
    made = {job.name: job for job in backbones_jobs(jobs)}
    assert set(made) == {cells.backbones, tokens.backbones}
    assert all(job.backbones == name for name, job in made.items())
    random = unread(tmp_path, "strategy = 'random'\nspace = 'mmnas'\n[[trial]]")[0]
    assert random.backbones == tokens.backbones
