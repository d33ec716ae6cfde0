"""What commands print: one JSON object, a list of facts, the command that comes next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import typer


def print_json(facts: Any) -> None:
    """Print one JSON object to standard output."""
    print(json.dumps(facts, indent=2, default=str))


def print_facts(facts: Iterable[tuple[str, str]], title: str | None = None) -> None:
    """Print names and values in two columns, below ``title`` where there is one."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name if title is None else f"  {name}", escape(value))
    if title is not None:
        console.print(title, style="bold", markup=False)
    console.print(table)
    if title is not None:
        console.print()


def next_command(*words: object, **options: object) -> None:
    """Print to standard error which ``bmnas`` command comes next; options of None are left out."""
    # Plain: a command that is wrapped or coloured cannot be copied.
    given = [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    line = shlex.join(["bmnas", *map(str, words), *given])
    typer.echo(f"Next: {line}", err=True)


def task_again(source: Mapping[str, Any]) -> str | None:
    """Return the ``--task`` that the next command needs, None where the run's record is enough."""
    from bmnas.tasks import reloadable

    name = source.get("task")
    return None if name is None or reloadable(source) else str(name)
