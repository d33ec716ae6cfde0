"""``bmnas presets``: settings that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer


def presets(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this one as a file to change.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the presets: what each is for, the expected time and score, its settings.

    With a name the preset is printed as TOML: a file that --preset of search and train takes.

    Example: bmnas presets digits > mine.toml
    """
    import json

    from bmnas.pipeline.config import load_preset, preset_names

    names = preset_names() if name is None else [name]
    found = {name: load_preset(name) for name in names}
    if as_json:
        facts = [
            {"name": name, **config.promise, **config.to_dict()} for name, config in found.items()
        ]
        print(json.dumps({"presets": facts}, indent=2))
        return
    if name is not None:
        print(found[name].to_toml(), end="")
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
            table.add_row(f"  {section}", _settings(values))
        console.print(table)
        console.print()


def _settings(values: Mapping[str, Any]) -> str:
    """Return the settings as text, values as a TOML file has them."""
    import json

    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items())
