"""Drawings and texts to the file that a user named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.machine.files import write_text
from bmnas.report.style import write_figure


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Raise UserError when the name of a file to write ends in none of ``suffixes``."""
    if path.suffix not in suffixes:
        raise UserError(
            f"{path}: received suffix {path.suffix!r}, expected one of {', '.join(suffixes)}"
        )


def write_output(path: Path, content: Any) -> None:
    """Write a text, or a Figure as .svg or .png, whole or not at all.

    Raises UserError when the place cannot be written.
    """
    try:
        if isinstance(content, str):
            write_text(path, content)
        else:
            write_figure(content, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
