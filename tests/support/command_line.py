"""The command line in this process: its exit status and what it printed."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import typer.main
from tiny_tasks import CONFIG

from bmnas.cli import main
from bmnas.machine import progress

#: Put together once: that takes longer than most commands that end in an error.
_program = functools.cache(typer.main.get_command)


@dataclass(frozen=True)
class Printed:
    """What a command left behind."""

    status: int
    out: str
    err: str


def bmnas_command(*words: object) -> Printed:
    """Run ``bmnas`` with ``words``."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        mock.patch.object(sys, "argv", ["bmnas", *map(str, words)]),
        mock.patch.object(typer.main, "get_command", _program),
        # However slow the machine is, nothing else is told.
        mock.patch.object(progress, "_EVERY", math.inf),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Printed(status, out.getvalue(), err.getvalue())


def one_line_error(printed: Printed, status: int = 2) -> str:
    """Return the message of a command that ended in one line and printed nothing else."""
    assert printed.status == status, printed
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def write_tiny_preset(folder: Path) -> Path:
    """Write a file for ``--preset`` with which every stage takes a moment."""
    path = folder / "tiny-preset.toml"
    path.write_text(CONFIG.to_toml())
    return path
