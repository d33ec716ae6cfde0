"""What one process of a sweep does: train backbones for several trials, or run one trial.

A job is plain JSON, so that any engine can carry it. It may be stopped at any moment and done
again: everything that it does goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import atomic_folder, atomic_path
from bmnas.pipeline.config import Config
from bmnas.pipeline.run_folder import Run, locked
from bmnas.tasks import load_task
from bmnas.tasks.task import Task

Job = Mapping[str, Any]


def do_job(job: Job) -> None:
    """Do what ``job`` says, and note the attempt; raises UserError where the user must help."""
    with _noted(Path(job["attempts"])):
        data = job["data"]
        task = load_task(job["task"], None if data is None else Path(data))
        config = Config.from_dict(job["config"], f"trial {job['name']}")
        config = Config(config.unimodal, config.search, config.train, preset=job["preset"])
        if job["kind"] == "backbones":
            _prepare_backbones(job, task, config)
        else:
            _run_trial(job, task, config)


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
def _noted(path: Path) -> Iterator[None]:
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


def _prepare_backbones(job: Job, task: Task, config: Config) -> None:
    from bmnas.features.cache import open_features
    from bmnas.features.reading import Pooled
    from bmnas.machine.progress import Silent
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.unimodal import unimodal_networks
    from bmnas.tasks import check_task
    from bmnas.training.heads import head_for

    check_task(task)
    folder, runtime = Path(job["backbones"]), Runtime.choose(job["device"])
    with locked(folder):
        networks = unimodal_networks(
            task,
            config.unimodal,
            head_for(task.kind, config.train.threshold),
            seed=job["seed"],
            folder=folder,
            runtime=runtime,
            progress=Silent(),
        )
        for length, dtype in job["caches"]:
            open_features(
                task,
                {name: found.backbone for name, found in networks.items()},
                parts=("train", "validation"),
                reading=Pooled(length),
                folder=folder / "features",
                device=runtime.device,
                progress=Silent(),
                dtype=dtype,
            )


def _run_trial(job: Job, task: Task, config: Config) -> None:
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.search import search
    from bmnas.pipeline.train import train

    run, runtime = Run(Path(job["run"])), Runtime.choose(job["device"])
    _adopt(Path(job["backbones"]), run.backbones)
    search(
        task,
        run=run.path,
        config=config,
        strategy=job["strategy"],
        seed=job["seed"],
        existing="resume",
        runtime=runtime,
    )
    if job["train"]:
        train(run.genotype, task, config=config, existing="resume", runtime=runtime)


def _adopt(shared: Path, own: Path) -> None:
    """Give ``own`` the backbones and features of ``shared``, as links where the disk has them.

    Not ``shared`` itself: a run holds its folder of backbones, and trials run side by side.
    """
    own.mkdir(parents=True, exist_ok=True)
    for path in shared.glob("*.safetensors"):
        if not (own / path.name).exists():
            with atomic_path(own / path.name) as aside:
                aside.unlink()
                _link(path, aside)
    for entry in (shared / "features").glob("*-*"):
        if not entry.name.startswith(".") and not (own / "features" / entry.name).exists():
            with atomic_folder(own / "features" / entry.name) as aside:
                for path in entry.iterdir():
                    _link(path, aside / path.name)


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(path, copy)


def user_error(job: Job) -> str | None:
    """Do ``job`` and return what a UserError said, None where it was done."""
    try:
        do_job(job)
    except UserError as error:
        return one_line(error)
    return None
