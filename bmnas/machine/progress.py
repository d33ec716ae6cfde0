"""Progress on long work: stages with a bar, a message and the time left; lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

_EVERY = 60.0  # seconds between two lines of a log


class Stage:
    """One stretch of work with a known number of units; this one shows nothing of it."""

    def advance(self, units: int = 1) -> None:
        """Say that ``units`` of the work are done."""

    def message(self, text: str) -> None:
        """Show ``text`` (a loss, a score) beside the bar."""


class Progress:
    """Shows the progress of stages; this one, the default in Python, shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str, units: int) -> Iterator[Stage]:
        """Run a stage of ``units`` units of work."""
        yield Stage()

    def note(self, text: str) -> None:
        """Tell the person something that is no error, in one line."""


class Bars(Progress):
    """Rich bars on standard error where that is a terminal; elsewhere a line a minute of all."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def lines_due(self) -> bool:
        """Tell whether a minute has gone since this was last true, or since the beginning."""
        now = time.monotonic()
        due = now - self._told >= _EVERY
        if due:
            self._told = now
        return due

    @contextlib.contextmanager
    def stage(self, name: str, units: int) -> Iterator[Stage]:
        """Run a stage with a bar that stays when the stage is over."""
        from rich import progress as rich
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            yield _Lines(self, name, units)
            return
        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=24),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[message]}"),
        )
        with rich.Progress(*columns, console=console) as bars:
            yield _Bar(bars, bars.add_task(name, total=units, message=""))

    def note(self, text: str) -> None:
        """Print ``text`` on standard error, terminal or not."""
        print(f"note: {text}", file=sys.stderr)


class _Bar(Stage):
    def __init__(self, bars: rich.progress.Progress, number: rich.progress.TaskID) -> None:
        self._bars, self._number = bars, number

    def advance(self, units: int = 1) -> None:
        self._bars.advance(self._number, units)

    def message(self, text: str) -> None:
        self._bars.update(self._number, message=text)


class _Lines(Stage):
    def __init__(self, bars: Bars, name: str, units: int) -> None:
        self._bars, self._name, self._units = bars, name, units
        self._done, self._message = 0, ""
        self._begun = time.monotonic()

    def advance(self, units: int = 1) -> None:
        self._done += units
        if not self._done or not self._bars.lines_due():
            return
        spent = time.monotonic() - self._begun
        left = spent / self._done * (self._units - self._done)
        print(
            f"{self._name}: {self._done} of {self._units} in {spent:.0f} s, about {left:.0f} s left"
            f"  {self._message}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    def message(self, text: str) -> None:
        self._message = text
