"""The presets that come with the package, as plain data; standard library only."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.machine.files import read_toml

_FOLDER = resources.files("bmnas.pipeline") / "presets"


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    files = [file.name for file in _FOLDER.iterdir()]
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return the content of the preset called ``name``, or of a file that ends in ``.toml``.

    Raises UserError that lists the names there are.
    """
    if name.endswith(".toml"):
        return read_toml(Path(name))
    known = preset_names()
    if name not in known:
        raise UserError(
            f"received preset {name!r}, expected one of {', '.join(known)}, or a .toml file"
            f"{close(name, known)}"
        )
    with resources.as_file(_FOLDER / f"{name}.toml") as path:
        return read_toml(path)
