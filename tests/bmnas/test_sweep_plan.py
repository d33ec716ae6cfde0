from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bmnas.lab.sweep.plan import make_plan
from bmnas.machine.errors import UserError


def plan(tmp_path: Path, text: str = "", *grid: str, **given: Any) -> list[Any]:
    path = None
    if text:
        path = tmp_path / "sweep.toml"
        path.write_text(text)
    return list(make_plan(path, given, grid, train=False).trials)


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
    config = trials[1].config("digits")
    assert (config.search.channels, config.search.epochs, config.preset) == (32, 2, "digits")
    assert config.search.batch_size == 64  # of the preset


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


def test_values_are_those_of_toml(tmp_path: Path) -> None:
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
        ("[[trial]]\nname = '../x'", [], r"name: received '\.\./x', expected a folder's name"),
        ("[[trial]]\nname = '.x'", [], r"name: received '\.x', expected a folder's name"),
        ("[[trial]]\n[[trial]]", [], "received two trials called trial"),
        ("", ["seed"], "--set: received 'seed', expected KEY=VALUE"),
        ("", ["seed="], "--set: received 'seed=', expected KEY=VALUE"),
        ("", ["sed=1"], "--set: received 'sed', .* did you mean 'seed'"),
        ("", ["seed=1,[", ""], r"--set: seed=1,\[: received '\['"),
        ("", ["seed=one"], "--set seed: received 'one', expected int"),
        ("", [f"seed={','.join(map(str, range(200)))}", "search.cells=" + "1," * 99 + "1"],
         "received a sweep of 20,000 trials, expected at most 10,000"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood(
    tmp_path: Path, text: str, grid: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(tmp_path, text, *grid)


def test_a_value_out_of_range_names_the_trial(tmp_path: Path) -> None:
    (trial,) = plan(tmp_path, "", "search.channels=0")
    with pytest.raises(UserError, match=r"trial channels-0: \[search\] channels: received 0"):
        trial.config("default")
