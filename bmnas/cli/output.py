"""What commands print: one JSON object, a list of facts, the command that comes next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import typer

from bmnas.tasks import Task, reloadable


def print_json(facts: Any) -> None:
    """Print one JSON object to standard output."""
    print(json.dumps(facts, indent=2, default=str))


def print_facts(facts: Mapping[str, object], title: str | None = None) -> None:
    """Print names and values in two columns, below ``title`` where there is one."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        label = name.replace("_", " ")
        table.add_row(label if title is None else f"  {label}", escape(words(value)))
    if title is None:
        console.print(table)
    else:
        console.print(title, style="bold", markup=False)
        console.print(table, "")


def words(value: object) -> str:
    """Return plain data as text: lists with commas, mappings as names with values."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(inner)}" for name, inner in value.items())
    return str(value)


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


def task_again(task: Task) -> str | None:
    """Return the ``--task`` that the next command needs, None where the run's record is enough."""
    name = task.source.get("task")
    return None if name is None or reloadable(task.source) else str(name)
