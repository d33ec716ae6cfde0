from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tiny_tasks import tiny_task
from typer.testing import CliRunner

from bmnas.cli import app
from bmnas.cli.output import task_again
from bmnas.tasks import FOLDER_TASKS, REGISTERED, load_task
from bmnas.tasks.task import PARTS


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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if "refsh" in n else []) for n in REGISTERED]
)
def test_what_is_listed_is_what_is_loaded(name: str) -> None:
    own, task = REGISTERED[name], load_task(name)
    assert (own.kind, own.classes, own.licence) == (task.kind, task.classes, task.licence)
    assert own.preset == task.preset
    assert own.samples == tuple(len(task.samples(part)) for part in PARTS)
    shapes = [f"{m.type} {'x'.join(map(str, m.data.shape[1:]))}".strip() for m in task.modalities]
    named = zip(task.modalities, shapes, strict=True)
    assert own.modalities == tuple(f"{m.name} ({shape})" for m, shape in named)


def test_the_next_command_names_a_task_of_a_module_and_its_data() -> None:
    made = replace(tiny_task(), source={"task": "my_tasks:make", "data": "/packs"})
    assert task_again(made) == {"task": "my_tasks:make", "data": "/packs"}
    assert task_again(load_task("digits")) == {}
    assert task_again(tiny_task()) == {}
