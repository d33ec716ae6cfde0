from __future__ import annotations

import json

from typer.testing import CliRunner

from bmnas.cli import app
from bmnas.tasks import REGISTERED


def test_the_table_names_every_task() -> None:
    result = CliRunner().invoke(app, ["tasks"])
    assert result.exit_code == 0
    for words in (*REGISTERED, "train 1078", "CC BY 4.0", "left (image 8x4), right (image 8x4)"):
        assert words in result.stdout


def test_json_is_one_object() -> None:
    result = CliRunner().invoke(app, ["tasks", "--json"])
    listed = {task["name"]: task for task in json.loads(result.stdout)["tasks"]}
    assert list(listed) == list(REGISTERED)
    assert listed["digits"]["samples"] == {"train": 1078, "validation": 360, "test": 359}
    assert listed["digits"]["modalities"] == ["left (image 8x4)", "right (image 8x4)"]
