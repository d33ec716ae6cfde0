"""``bmnas tasks``: the tasks that have a name."""

from __future__ import annotations

from typing import Annotated

import typer


def tasks(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the registered tasks: data, samples, licence, expected time and score.

    A task of your own is a task.toml file, see docs/your-own-data.md.

    Example: bmnas tasks --json
    """
    import json

    from bmnas.tasks import REGISTERED

    if as_json:
        print(json.dumps({"tasks": [_facts(name) for name in REGISTERED]}, indent=2))
        return

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for name in REGISTERED:
        table = Table(box=None, show_header=False, pad_edge=False)
        console.print(name, style="bold", markup=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in _facts(name).items():
            if key != "name" and value not in ({}, ""):
                table.add_row(f"  {key.replace('_', ' ')}", escape(_words(value)))
        console.print(table)
        console.print()


def _facts(name: str) -> dict[str, object]:
    from bmnas.pipeline.config import load_preset
    from bmnas.tasks import REGISTERED

    task = REGISTERED[name]
    # A registered task has a preset of its own name, which says what was measured with it.
    promise = load_preset(name).promise
    train, validation, test = task.samples
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": task.classes,
        "modalities": list(task.modalities),
        "samples": {"train": train, "validation": validation, "test": test},
        "options": {option: list(values) for option, values in task.options.items()},
        "data": task.origin,
        "data_present": task.present(),
        "licence": task.licence,
        "expected_time": promise["time"],
        "expected_score": promise["score"],
    }


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(
            f"{key}={'|'.join(v)}" if isinstance(v, list) else f"{key} {_words(v)}"
            for key, v in value.items()
        )
    return str(value)
