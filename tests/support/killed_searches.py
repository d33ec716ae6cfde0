"""Searches of MMnas that are killed at chosen places and go on; one process starts them all.

Printed as JSON: of each place whether the run folder ended as that of a search left in peace.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from few_calls import timed
from tiny_tasks import CONFIG
from tiny_words import tiny_questions

import bmnas
import bmnas.pipeline.search
import bmnas.pipeline.train
from bmnas.machine import files
from bmnas.pipeline import multimodal
from bmnas.spaces.mmnas.supernet import Supernet
from bmnas.strategies import gates, rerank
from bmnas.training import together

#: What is called there, at which of its calls the search dies, and which of them count.
PLACES: dict[str, tuple[Any, str, int, Callable[..., bool]]] = {
    "weights": (Supernet, "draw", 3, lambda *a, gated=False: not gated),
    "gates": (Supernet, "draw", 3, lambda *a, gated=False: gated),
    "screening": (gates, "operations_of", 5, lambda *a: True),
    "short trainings": (together, "evaluate_together", 2, lambda *a: True),
    # Written aside, not yet moved to its place.
    "files": (files.os, "replace", 12, lambda *a: True),
}


def search(run: Path, dies: str | None = None) -> None:
    rerank.SCREENED = 8
    if dies is not None:
        kill_at(*PLACES[dies])
    # Twelve steps, in three of which the rate rises: it dies in the third.
    config = CONFIG.override("search", rerank=2, epochs=12, warmup_steps=5)
    bmnas.search(tiny_questions(48), run=run, config=config, strategy="mmnas", existing="resume")


def kill_at(
    owner: Any, name: str, last: int, counts: Callable[..., bool] = lambda *a, **k: True
) -> None:
    """Let this process die at the ``last`` call of ``name`` that counts."""
    real, calls = getattr(owner, name), itertools.count(1)

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


def quicken() -> None:
    """Draw nothing and time few calls in this process: both take longer than all else here."""
    for module in (bmnas.pipeline.search, bmnas.pipeline.train):
        module.write_pictures = lambda *_: None
    multimodal.measure_latency = timed


def main() -> None:
    quicken()
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
