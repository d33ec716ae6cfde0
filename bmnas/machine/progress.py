"""Progress on long work: stages with a bar, a message and the time left; silent elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Stage(Protocol):
    """One stretch of work with a known number of units."""

    def advance(self, units: int = 1) -> None:
        """Say that ``units`` of the work are done."""
        ...

    def message(self, text: str) -> None:
        """Show ``text`` (a loss, a score) beside the bar."""
        ...


class Progress(Protocol):
    """Shows stages as they run."""

    def stage(self, name: str, units: int) -> contextlib.AbstractContextManager[Stage]:
        """Return a context in which a stage of ``units`` units of work runs."""
        ...

    def note(self, text: str) -> None:
        """Tell the person something that is no error, in one line."""
        ...


class _SilentStage:
    def advance(self, units: int = 1) -> None:
        pass

    def message(self, text: str) -> None:
        pass


class Silent:
    """Shows nothing; the default of the Python functions."""

    @contextlib.contextmanager
    def stage(self, name: str, units: int) -> Iterator[Stage]:
        """Run a stage without showing it."""
        yield _SilentStage()

    def note(self, text: str) -> None:
        """Keep it."""


class Bars:
    """Rich bars on standard error, drawn only when that is a terminal."""

    @contextlib.contextmanager
    def stage(self, name: str, units: int) -> Iterator[Stage]:
        """Run a stage with a bar that stays when the stage is over."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        if not console.is_terminal:
            yield _SilentStage()
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
        )
        with RichProgress(*columns, console=console) as bars:
            number = bars.add_task(name, total=units, message="")

            class Bar:
                def advance(self, units: int = 1) -> None:
                    bars.advance(number, units)

                def message(self, text: str) -> None:
                    bars.update(number, message=text)

            yield Bar()

    def note(self, text: str) -> None:
        """Print ``text`` on standard error, terminal or not."""
        print(f"note: {text}", file=sys.stderr)
