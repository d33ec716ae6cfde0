"""Searches of MMnas that are killed at chosen places and go on; one process starts them all.

Printed as JSON: of each place whether the run folder ended as that of a search left in peace.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_tasks import CONFIG
from tiny_words import tiny_questions

import bmnas
from bmnas.machine import files
from bmnas.spaces.mmnas.supernet import Supernet
from bmnas.strategies import gates, rerank
from bmnas.training import together

#: What is called there, and at which of its calls the search dies.
PLACES: dict[str, tuple[Any, str, Callable[..., bool], int]] = {
    "weights": (Supernet, "draw", lambda *a, gated=False: not gated, 3),
    "gates": (Supernet, "draw", lambda *a, gated=False: gated, 3),
    "screening": (gates, "operations_of", lambda *a: True, 5),
    "short trainings": (together, "evaluate_together", lambda *a: True, 2),
    # Written aside, not yet moved to its place.
    "files": (files.os, "replace", lambda *a: True, 12),
}


def search(run: Path, dies: str | None = None) -> None:
    rerank.SCREENED = 8
    if dies is not None:
        kill_at(dies)
    # Twelve steps, in three of which the rate rises: it dies in the third.
    config = CONFIG.override("search", rerank=2, epochs=12, warmup_steps=5)
    bmnas.search(tiny_questions(48), run=run, config=config, strategy="mmnas", existing="resume")


def kill_at(place: str) -> None:
    """Let this process die when it comes to ``place``."""
    owner, name, counts, last = PLACES[place]
    real, calls = getattr(owner, name), iter(range(1, 1000))

    @functools.wraps(real)
    def call(*arguments: Any, **named: Any) -> Any:
        if counts(*arguments, **named) and next(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(owner, name, call)


def forked(work: Callable[[], None]) -> int:
    """Do ``work`` in a process of its own; return how it ended, as a shell would say it."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(run: Path) -> dict[str, bytes]:
    return {
        name: (run / name).read_bytes().replace(run.name.encode(), b"run")
        for name in ("genotype.json", "history.jsonl", "rerank.jsonl")
    }


def main() -> None:
    folder = Path(sys.argv[1])
    # Here: what it imports and compiles, those that are forked have too.
    search(folder / "whole")
    found = {}
    for place in PLACES:
        run = folder / place
        assert forked(functools.partial(search, run, dies=place)) == -signal.SIGKILL, place
        assert not (run / "genotype.json").exists(), place
        assert forked(functools.partial(search, run)) == 0
        assert not list(run.rglob(".*.part"))
        found[place] = content(run) == content(folder / "whole")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
