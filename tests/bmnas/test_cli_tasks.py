from __future__ import annotations

import json
from dataclasses import replace

from tiny_tasks import tiny_task
from typer.testing import CliRunner

from bmnas.cli import app
from bmnas.cli.output import task_again
from bmnas.tasks import FOLDER_TASKS, REGISTERED, load_task


def test_the_table_names_every_task() -> None:
    result = CliRunner().invoke(app, ["tasks"])
    assert result.exit_code == 0
    for words in (
        *REGISTERED,
        *FOLDER_TASKS,
        "train 1078",
        "CC BY 4.0",
        "left (image 8x4), right (image 8x4)",
    ):
        assert words in result.stdout


def test_json_is_one_object() -> None:
    result = CliRunner().invoke(app, ["tasks", "--json"])
    listed = {task["name"]: task for task in json.loads(result.stdout)["tasks"]}
    assert list(listed) == [*REGISTERED, *FOLDER_TASKS]
    assert listed["mmimdb"]["samples"] == {"train": 15552, "validation": 2608, "test": 7799}
    assert "62.92" in listed["mmimdb"]["expected_score"]
    assert listed["ntu"]["samples"] == {"train": 22952, "validation": 2509, "test": 16487}
    # Of all train subjects of the protocol, validation among them, 40,091 samples have skeletons.
    assert sum(listed["ntu-all"]["samples"].values()) == 40091 + 16487
    assert listed["digits"]["samples"] == {"train": 1078, "validation": 360, "test": 359}
    assert listed["digits"]["modalities"] == ["left (image 8x4)", "right (image 8x4)"]


def test_the_next_command_names_a_task_of_a_module_and_its_data() -> None:
    made = replace(tiny_task(), source={"task": "my_tasks:make", "data": "/packs"})
    assert task_again(made) == {"task": "my_tasks:make", "data": "/packs"}
    assert task_again(load_task("digits")) == {}
    assert task_again(tiny_task()) == {}
