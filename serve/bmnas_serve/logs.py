"""The log, on standard error: a line for each record, as text or as JSON."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime

LOG = logging.getLogger("bmnas_serve")

#: The request that a task answers, as its client or else the server calls it.
REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="-")


class _Formatter(logging.Formatter):
    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "request": REQUEST_ID.get(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._form == "json":
            return json.dumps({**line, "traceback": trace} if trace else line)
        return " ".join(map(str, line.values())) + (f"\n{trace}" if trace else "")


def configure(form: str, *, requests: bool) -> None:
    """Write records of the server to standard error as ``text`` or ``json``; every request if so.

    Records of uvicorn are written too where they are errors: its warnings are of broken clients.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(form))
    for name, level in (
        (LOG.name, logging.INFO if requests else logging.WARNING),
        ("uvicorn.error", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
