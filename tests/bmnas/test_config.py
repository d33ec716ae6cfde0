from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny_tasks import tiny_task

from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config, config_for, load_preset, preset_names
from bmnas.spaces.mmnas.space import MMnasSpace
from bmnas.strategies.settings import SearchConfig
from bmnas.training.settings import TrainConfig


@pytest.mark.parametrize("samples", [30, 600, 30_000])
def test_settings_that_follow_from_a_task_are_as_many_steps_whatever_its_size(samples: int) -> None:
    task = tiny_task(samples=samples)
    config = config_for(task)
    assert config.preset == "default"
    count = len(task.samples("train"))
    for stage, steps in ((config.unimodal, 800), (config.search, 500)):
        epoch = count / min(stage.batch_size, count)  # in steps
        assert steps <= stage.epochs * epoch <= steps + 3 * epoch
    tokens = config_for(task, space=MMnasSpace)
    assert tokens.unimodal == config.unimodal
    assert tokens.search.epochs >= 3 * config.search.epochs - 2
    assert tokens.search.warmup_steps == tokens.train.warmup_steps == 50
    assert (tokens.search.dropout, tokens.train.dropout, config.train.dropout) == (0, 0, 0.3)
    with pytest.raises(UserError, match="received preset 'default', expected one of"):
        load_preset("default")


def test_without_a_preset_settings_are_those_of_the_paper() -> None:
    plain = Config()
    assert (plain.search.rerank, plain.search.rivals, plain.unimodal.folds) == (0, False, 0)
    assert not plain.train.unimodal_logits
    assert plain.preset is None


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_states_its_promise_and_can_be_printed_and_read_back(
    name: str, tmp_path: Path
) -> None:
    preset = load_preset(name)
    assert set(preset.promise) - {"features", "memory", "differs"} == {
        "use",
        "command",
        "time",
        "score",
    }
    assert preset.promise["command"].startswith("bmnas search")
    path = tmp_path / "mine.toml"
    path.write_text(preset.to_toml(), encoding="utf-8")
    again = load_preset(str(path))
    assert dataclasses.replace(again, preset=name) == preset
    assert again.preset == str(path)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UserError) as line:
        load_preset("qick")
    assert str(line.value) == (
        f"received preset 'qick', expected one of {', '.join(preset_names())}, or a .toml file"
        "; did you mean 'quick'?"
    )


def test_a_preset_name_is_no_path() -> None:
    with pytest.raises(UserError, match=r"received preset '\.\./presets/digits'"):
        load_preset("../presets/digits")


@pytest.mark.parametrize("content", [None, "[search", "\x00"])
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"mine\.toml: (cannot be read|not a TOML file)") as line:
        load_preset(str(path))
    assert "\n" not in str(line.value)


def test_every_problem_is_told_at_once() -> None:
    data = {
        "search": {"cells": "two", "cell": 3, "dropout": True, "max_lr": 1},
        "train": 7,
        "serch": {},
        "promise": {"use": 3},
    }
    with pytest.raises(UserError) as line:
        Config.from_dict(data, "mine.toml")
    message = str(line.value)
    assert message.startswith("mine.toml: ")
    for part in (
        "search.cells: received 'two', expected an integer",
        "search: received key 'cell', expected only cells, steps, ",
        "search.dropout: received True, expected a number",
        "train: received 7, expected a table",
        "received key 'serch', expected only unimodal, search, train",
        "did you mean 'search'?",
        "promise.use: received 3, expected a string",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("search", {"cells": 0}, r"search\.cells: received 0, expected at least 1"),
        ("search", {"channels": 65537}, "channels: received 65537, expected from 1 to 65536"),
        ("search", {"length": 0}, "length: received 0, expected from 1 to 65536"),
        ("search", {"batch_size": 1}, "batch_size: received 1, expected at least 2"),
        ("search", {"dropout": 1.0}, r"dropout: received 1\.0, expected from 0 to below 1"),
        ("search", {"dropout": -0.1}, "expected from 0 to below 1"),
        ("search", {"max_lr": float("nan")}, "max_lr: received nan, expected 0 or more"),
        ("search", {"max_lr": float("inf")}, "max_lr: received inf"),
        ("search", {"weight_decay": -1.0}, r"weight_decay: received -1\.0, expected 0 or more"),
        ("search", {"rerank": -1}, "rerank: received -1, expected 0 or more"),
        ("train", {"threshold": 0.0}, r"train\.threshold: received 0\.0, expected between"),
        ("train", {"threshold": 1.0}, "threshold: received 1"),
        ("train", {"epochs": -3}, "epochs: received -3"),
        ("unimodal", {"epochs": 0}, r"unimodal\.epochs"),
    ],
)
def test_values_out_of_range_are_told(section: str, values: dict[str, Any], message: str) -> None:
    # The command line names its options, a file its sections and keys.
    told = message.replace(rf"{section}\.", "").replace("_", "-")
    with pytest.raises(UserError, match=f"^--.*{told}"):
        Config().override(section, **values)
    with pytest.raises(UserError, match=f"mine: .*{message}"):
        Config.from_dict({section: values}, "mine")


def test_several_values_out_of_range_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^--cells: .*; --epochs: ") as line:
        Config().override("search", cells=0, epochs=0)
    assert "\n" not in str(line.value)


def test_the_preset_of_a_task_is_told_with_the_task() -> None:
    task = dataclasses.replace(tiny_task(), preset="qick")
    assert config_for(task, "digits-quick") == load_preset("digits-quick")
    with pytest.raises(UserError, match=r"^task .*: received preset 'qick', .* mean 'quick'\?$"):
        config_for(task)


def test_an_override_changes_what_is_given_and_nothing_else() -> None:
    preset = load_preset("digits-quick")
    assert preset.override("search", cells=None, steps=None) == preset
    changed = preset.override("search", cells=5)
    assert changed.search == dataclasses.replace(preset.search, cells=5)
    assert (changed.train, changed.unimodal, changed.preset) == (
        preset.train,
        preset.unimodal,
        "digits-quick",
    )
    joint = preset.override("train", freeze_backbones=False)
    assert joint.train.freeze_backbones is False
    assert preset.train.freeze_backbones is True


def test_whole_numbers_may_stand_for_floats_but_not_the_other_way() -> None:
    config = Config.from_dict({"search": {"max_lr": 1}}, "mine")
    assert type(config.search.max_lr) is float
    with pytest.raises(UserError, match=r"cells: received 2\.0, expected an integer"):
        Config.from_dict({"search": {"cells": 2.0}}, "mine")
    with pytest.raises(UserError, match="freeze_backbones: received 1, expected true or false"):
        Config.from_dict({"train": {"freeze_backbones": 1}}, "mine")
    with pytest.raises(UserError, match=r"max_lr: received 1000.*, expected a number"):
        Config.from_dict({"search": {"max_lr": 10**400}}, "mine")


def test_a_dictionary_round_trip() -> None:
    config = Config(search=SearchConfig(cells=3), train=TrainConfig(freeze_backbones=True))
    assert Config.from_dict(config.to_dict(), "mine") == config
