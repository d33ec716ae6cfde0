"""``bmnas presets``: settings that come with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bmnas.cli.options import Json
from bmnas.cli.output import print_facts, print_json


def presets(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this one as a file to change.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the presets: what each is for, the expected time and score, its settings.

    With a name the preset is printed as TOML: a file that --preset of search and train takes.

    Example: bmnas presets digits > mine.toml
    """
    from bmnas.pipeline.config import load_preset
    from bmnas.pipeline.presets import preset_names

    names = preset_names() if name is None else [name]
    found = {name: load_preset(name) for name in names}
    if as_json:
        print_json({"presets": [{"name": n, **c.promise, **c.to_dict()} for n, c in found.items()]})
    elif name is not None:
        print(found[name].to_toml(), end="")
    else:
        for title, config in found.items():
            settings = {section: _words(v) for section, v in config.to_dict().items()}
            print_facts({**config.promise, **settings}.items(), title)


def _words(values: Mapping[str, Any]) -> str:
    """Return settings as text, values as a TOML file has them."""
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in values.items())
