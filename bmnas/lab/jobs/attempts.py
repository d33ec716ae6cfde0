"""Who was at work on a job, and how that ended: a file of JSON lines for each job."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bmnas.machine.errors import one_line


def attempts_file(folder: Path, name: str) -> Path:
    """Return the file that has a line for each start and end of an attempt at a job."""
    return folder / ".attempts" / f"{name.strip('.').replace('/', '-')}.jsonl"


def attempts(path: Path) -> list[dict[str, Any]]:
    """Return what is known of every attempt at a job: pid, host, how it ended if it did."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # the line of a process killed while it wrote
            note = json.loads(line)
            if note.pop("event") == "start":
                found.append(note)
            elif found:
                found[-1].update(note)
    return found


@contextlib.contextmanager
def noted(path: Path) -> Iterator[None]:
    """Leave a line in ``path`` before and after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()

    def note(**facts: Any) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    note(event="start", pid=os.getpid(), host=socket.gethostname(), started=started)
    error: str | None = None
    try:
        yield
    except BaseException as problem:
        error = one_line(problem)
        raise
    finally:
        note(event="end", seconds=time.time() - started, error=error)
