from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from bmnas.cli import app
from bmnas.tasks import REGISTERED


def test_the_table_names_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BMNAS_DATA", raising=False)
    result = CliRunner().invoke(app, ["tasks"])
    assert result.exit_code == 0
    for words in (*REGISTERED, "1,078", "CC BY 4.0", "split=take|speaker", "data present    no"):
        assert words in result.stdout


def test_json_is_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BMNAS_DATA", raising=False)
    result = CliRunner().invoke(app, ["tasks", "--json"])
    listed = {task["name"]: task for task in json.loads(result.stdout)["tasks"]}
    assert list(listed) == list(REGISTERED)
    assert listed["digits"]["samples"] == {"train": 1078, "validation": 360, "test": 359}
    assert listed["digits"]["data_present"] is True
    assert listed["av-digits"]["data_present"] is False
    assert listed["av-digits"]["options"]["audio"] == ["noisy", "clean"]


def test_the_list_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys; sys.modules['torch'] = sys.modules['sklearn'] = None\n"
        "from bmnas.cli.tasks import tasks; tasks(as_json=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["tasks"]) == len(REGISTERED)
