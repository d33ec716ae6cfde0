"""What commands print: one JSON object, a list of facts, the command that comes next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import typer

from bmnas.report.tables import TextTable, print_tables, shown
from bmnas.tasks import Task, reloadable


def print_json(facts: Any) -> None:
    """Print one JSON object to standard output."""
    print(json.dumps(facts, indent=2, default=str))


def print_facts(facts: Mapping[str, object], title: str) -> None:
    """Print a table of names and values."""
    rows = tuple((name.replace("_", " "), shown(v, limit=2000)) for name, v in facts.items())
    print_tables([TextTable(title, ("property", "value"), rows, words=2)])


def next_command(*arguments: object, **options: object) -> None:
    """Print to standard error which ``bmnas`` command comes next; options of None are left out."""
    # Plain: a command that is wrapped or coloured cannot be copied.
    given = [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    line = shlex.join(["bmnas", *map(str, arguments), *given])
    typer.echo(f"Next: {line}", err=True)


def task_again(task: Task) -> dict[str, Any]:
    """Return what names ``task`` in the next command; nothing where the run's record is enough."""
    if "task" not in task.source or reloadable(task.source):
        return {}
    return {"task": task.source["task"], "data": task.source.get("data")}
