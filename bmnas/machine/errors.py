"""The one exception that means: the user's input is wrong; and what others say, in one line."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence


class UserError(Exception):
    """The input cannot be used; the message is one line for the person who gave it.

    A message says what was received, what was expected and what to do. The command line
    prints it after ``error:`` and exits with status 2, without a traceback.
    """


@contextlib.contextmanager
def at(place: object) -> Iterator[None]:
    """Put ``place`` in front of the message of a UserError that is raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def one_line(error: object, limit: int | None = None) -> str:
    """Return the message of ``error`` on one line, of at most ``limit`` characters."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def few(names: Iterable[object], count: int = 4) -> str:
    """Return the first ``count`` of ``names``, with ``…`` where there are more."""
    found = [str(name) for name in names]
    return ", ".join(found[:count]) + (", …" if len(found) > count else "")


def close(name: str, names: Sequence[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest of ``names``, or nothing."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
