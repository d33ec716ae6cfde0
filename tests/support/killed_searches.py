"""Work of MMnas that is killed at chosen places and goes on; one process starts it all.

Printed as JSON: of each place whether the run folder ended as that of work left in peace.
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
from tiny_words import captioned, tiny_questions

import bmnas
import bmnas.pipeline.search
import bmnas.pipeline.train
from bmnas.machine import files
from bmnas.pipeline import multimodal
from bmnas.spaces.mmnas.supernet import Supernet
from bmnas.strategies import gates, rerank
from bmnas.training import mining, together

#: What is called there, at which of its calls the work dies, and which of them count.
Place = tuple[Any, str, int, Callable[..., bool]]
SEARCH: dict[str, Place] = {
    "weights": (Supernet, "draw", 3, lambda *a, gated=False: not gated),
    "gates": (Supernet, "draw", 3, lambda *a, gated=False: gated),
    "screening": (gates, "operations_of", 5, lambda *a: True),
    "short trainings": (together, "evaluate_together", 2, lambda *a: True),
    # Written aside, not yet moved to its place.
    "files": (files.os, "replace", 12, lambda *a: True),
}
#: Where pairs that do not belong together are scored, to learn from the hardest.
PAIRS: dict[str, Place] = {
    "pairs of a search": (mining, "others", 3, lambda *a: True),
    "pairs of a training": (mining, "others", 8, lambda *a: True),
}


def search(run: Path, place: Place | None = None) -> None:
    rerank.SCREENED = 8
    if place is not None:
        kill_at(*place)
    # Twelve steps, in three of which the rate rises: it dies in the third.
    config = CONFIG.override("search", rerank=2, epochs=12, warmup_steps=5)
    bmnas.search(tiny_questions(48), run=run, config=config, strategy="mmnas", existing="resume")


def match(run: Path, place: Place | None = None) -> None:
    """Search and train on pairs."""
    if place is not None:
        kill_at(*place)
    config = CONFIG.override("search", epochs=4).override("train", epochs=3, negatives=7)
    config = config.override("mmnas", negatives=5, hard_from=0.5, warm_up=0.7)
    options: dict[str, Any] = {"run": run, "config": config, "existing": "resume"}
    bmnas.search(captioned(), strategy="mmnas", **options)
    bmnas.train(run / "genotype.json", captioned(), **options)


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
    names = ("genotype.json", "history.jsonl", "rerank.jsonl", "network.safetensors")
    return {name: (run / name).read_bytes() for name in names if (run / name).is_file()}


def quicken() -> None:
    """Draw nothing and time few calls in this process: both take longer than all else here."""
    for module in (bmnas.pipeline.search, bmnas.pipeline.train):
        module.write_pictures = lambda *_: None
    multimodal.measure_latency = timed


def main() -> None:
    quicken()
    folder = Path(sys.argv[1])
    found = {}
    for work, places, last in (
        (search, SEARCH, "genotype.json"),
        (match, PAIRS, "network.safetensors"),
    ):
        # Here: what it imports and compiles, those that are forked have too.
        peaceful = folder / work.__name__ / "run"
        work(peaceful)
        whole = content(peaceful)
        assert last in whole
        for name, place in places.items():
            run = folder / name / "run"
            assert forked(functools.partial(work, run, place)) == -signal.SIGKILL, name
            assert not (run / last).exists(), name
            assert forked(functools.partial(work, run)) == 0
            assert not list(run.rglob(".*.part"))
            found[name] = content(run) == whole
    print(json.dumps(found))


if __name__ == "__main__":
    main()
