"""Samples that are left out of a data set: those that ``left_out.txt`` in its folder names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import write_text

#: A line is the name of a sample, as ``Task.names`` has it, and why it is left out, after a tab.
LEFT_OUT = "left_out.txt"


def left_out(folder: Path) -> frozenset[str]:
    """Return the names of samples that are not to be loaded from ``folder``.

    Raises UserError where the list cannot be read.
    """
    lines = _text(folder / LEFT_OUT).split("\n")
    return frozenset(name for line in lines if (name := line.partition("\t")[0].strip()))


def leave_out(folder: Path, reasons: Mapping[str, str]) -> Path:
    """Add samples, each with the reason why, to the list in ``folder``; return its path."""
    path = folder / LEFT_OUT
    before = _text(path).rstrip("\n")
    lines = [before] if before else []
    lines += [f"{name}\t{one_line(reason)}" for name, reason in reasons.items()]
    write_text(path, "\n".join([*lines, ""]))
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
