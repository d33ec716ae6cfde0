"""A search and a training of the command line, killed at files drawn at random, that go on.

Until the next file has its name, a kill leaves what it would leave earlier.
One process starts them all: what it has imported, those that are forked have too.
Printed as JSON: of each whether, at every end, its files were those of a run left in peace.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from command_line import bmnas_command
from killed_searches import forked, kill_at, quicken
from tiny_tasks import CONFIG, write_tiny_task

KILLS = 5
SEARCH = ("search", "--task", "task.toml", "--preset", "all.toml")
TRAIN = ("train", "--epochs", "8", "--genotype", "whole/genotype.json")


def command(*words: str, dies_at: int | None = None) -> None:
    """Run a command; this process dies where it has written that many files, the last aside."""
    if dies_at is not None:
        kill_at(os, "replace", dies_at)
    printed = bmnas_command(*words)
    if printed.status:
        print(printed.err, file=sys.stderr)
        os._exit(printed.status)


def ends_alike(words: tuple[str, ...], whole: Path, kept: tuple[str, ...]) -> bool:
    """Kill a command five times, starting it again each time; it ends as it did in ``whole``.

    Whenever it reaches its end before, it starts from nothing again.
    """
    with mock.patch.object(os, "replace", wraps=os.replace) as written:
        command(*words, "--run", whole.name)
    killed = whole.with_name("killed")
    again = functools.partial(command, *words, "--run", killed.name, "--resume")
    draw, kills, alike = random.Random(0), 0, True
    while True:
        # What is left to do late, those that go on come to.
        last = draw.randint(1, written.call_count // 2) if kills < KILLS else None
        status = forked(functools.partial(again, dies_at=last))
        assert status in (0, -signal.SIGKILL), status
        if status:
            kills += 1
            continue
        alike &= content(killed, kept) == content(whole, kept) and not parts(killed)
        shutil.rmtree(killed)
        if last is None:
            return alike


def content(run: Path, names: tuple[str, ...]) -> list[bytes]:
    said = f'"run": "{run.name}"'.encode()
    return [(run / name).read_bytes().replace(said, b'"run": ""') for name in names]


def parts(run: Path) -> list[Path]:
    """What a killed writer left unfinished."""
    return list(run.rglob(".*.part"))


def main() -> None:
    quicken()
    os.chdir(sys.argv[1])
    here = Path.cwd()
    write_tiny_task(here)
    config = CONFIG.override("unimodal", folds=2, epochs=2)
    config = config.override("search", rerank=2, rivals=True, epochs=4, candidate_epochs=1)
    config = config.override("train", unimodal_logits=True)
    (here / "all.toml").write_text(config.to_toml())
    jobs: dict[str, Callable[[], bool]] = {
        "search": lambda: ends_alike(SEARCH, here / "whole", ("history.jsonl", "genotype.json")),
        "train": lambda: ends_alike(
            TRAIN, here / "trained", ("train.jsonl", "network.safetensors")
        ),
    }
    print(json.dumps({name: job() for name, job in jobs.items()}))


if __name__ == "__main__":
    main()
