"""``bmnas presets``: settings that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer


def presets(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the presets: what each is for, the expected time and score, its settings.

    Example: bmnas presets --json
    """
    import json

    from bmnas.config import load_preset, preset_names

    found = {name: load_preset(name) for name in preset_names()}
    if as_json:
        facts = [
            {"name": name, **config.promise, **config.to_dict()} for name, config in found.items()
        ]
        print(json.dumps({"presets": facts}, indent=2))
        return

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for name, config in found.items():
        console.print(name, style="bold", markup=False)
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for key, text in config.promise.items():
            table.add_row(f"  {key}", escape(text))
        for section, values in config.to_dict().items():
            table.add_row(f"  {section}", ", ".join(f"{k} {v}" for k, v in values.items()))
        console.print(table)
        console.print()
