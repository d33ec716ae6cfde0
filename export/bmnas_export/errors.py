"""What can go wrong in an export that is not a mistake of its input."""

from __future__ import annotations


class ExportError(Exception):
    """The network cannot become a graph; the message is one line. No bundle is left."""


class ParityError(ExportError):
    """The graph and torch disagree; the message shows the figures."""


class PrecisionError(ExportError):
    """A form in fewer bits answers worse than it may; the message shows the figures."""


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of an exception's message that says something, cut where it is long.

    torch adds pages of advice below it.
    """
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
