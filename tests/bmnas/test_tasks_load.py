from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from task_files import write_task
from tiny_tasks import tiny_task

from bmnas.machine.errors import UserError
from bmnas.tasks import FOLDER_TASKS, REGISTERED, load_task, reload_task


def error_of(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_task(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; modules that are imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BMNAS_DATA", raising=False)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_task_is_returned_as_it_is() -> None:
    task = tiny_task()
    assert load_task(task) is task


def test_a_path_a_folder_and_the_way_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_task(here / "mine")
    for source in ("mine/task.toml", "mine", path, path.parent):
        assert load_task(source).source == {"task": str(path.resolve())}
    source = json.loads(json.dumps(load_task("mine", Path("mine")).source))
    monkeypatch.chdir("/")
    assert reload_task(source).name == "mine"


def test_an_unknown_name_lists_what_there_is() -> None:
    message = error_of("digit")
    names = ", ".join([*REGISTERED, *FOLDER_TASKS])
    assert message == (
        f"received task 'digit', expected {names}, a path to a task.toml, or module:attribute; "
        "did you mean 'digits'?"
    )


def test_digits_carry_their_data(tmp_path: Path) -> None:
    assert load_task("digits").source == {"task": "digits"}
    assert error_of("digits", tmp_path) == "task digits carries its own data: leave --data out"
    assert "no module 'digits'" in error_of("digits:x")


MODULE = """
from tiny_tasks import tiny_task
from dataclasses import replace

task = tiny_task()
number = 3

def make(data=None):
    return replace(tiny_task(), licence=f"{data}")

def greedy(data, more):
    return task

def wrong():
    return 3

class Box:
    task = task
"""


def test_a_task_of_a_module(here: Path) -> None:
    (here / "my_tasks.py").write_text(MODULE)
    task = load_task("my_tasks:task")
    assert task.source == {"task": "my_tasks:task"}
    assert load_task("my_tasks:Box.task").name == "tiny"
    made = load_task("my_tasks:make", Path("d"))
    assert made.licence == "d"
    assert made.source["data"] == str((here / "d").resolve())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"task": "os:system", "options": {"command": "touch PWNED"}}, "recorded as os:system"),
        ({"task": "my_tasks:make"}, "name it with --task my_tasks:make"),
        ({"task": 3}, "received a recorded task 3"),
        ({"task": "av-digits"}, "name it with --task module:attribute"),
    ],
)
def test_a_recorded_module_is_not_imported(
    here: Path, source: dict[str, object], expected: str
) -> None:
    (here / "my_tasks.py").write_text("raise SystemExit('imported')")
    with pytest.raises(UserError) as caught:
        reload_task(source)
    assert expected in str(caught.value)
    assert not (here / "PWNED").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("my_task:task", "my_task:task: no module 'my_task' in "),
        ("my_tasks.deeper:task", "no module 'my_tasks.deeper' in "),
        ("my_tasks:taks", "my_tasks has no attribute 'taks'; did you mean 'task'?"),
        ("my_tasks:number", "received a int, expected a bmnas.tasks.Task"),
        ("my_tasks:wrong", "received a int, expected a bmnas.tasks.Task"),
        ("my_tasks:", "received task 'my_tasks:', expected digits, "),
        ("my tasks:task", "received 'my tasks:task', expected module:attribute"),
        ("task.toml:task", "no module 'task.toml' in "),
    ],
)
def test_a_module_without_a_task(here: Path, source: str, expected: str) -> None:
    (here / "my_tasks.py").write_text(MODULE)
    assert expected in error_of(source)


def test_wrong_arguments_for_a_module(here: Path) -> None:
    (here / "my_tasks.py").write_text(MODULE)
    assert "received data, but it is not a function" in error_of("my_tasks:task", Path("d"))
    assert "called with data: missing a required argument: 'more'" in error_of(
        "my_tasks:greedy", Path("d")
    )
    assert "called with data: got an unexpected" in error_of("my_tasks:wrong", Path("d"))


def test_a_fault_inside_a_users_module_is_seen_as_it_is(here: Path) -> None:
    (here / "my_tasks.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_task("my_tasks:task")


def test_a_task_without_a_name_cannot_be_loaded_again() -> None:
    with pytest.raises(UserError, match="was built in Python and has no name to load it by"):
        reload_task(tiny_task().source)


def test_importing_tasks_imports_no_heavy_package() -> None:
    import subprocess

    code = "import bmnas.tasks, sys; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
