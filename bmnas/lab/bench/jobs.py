"""The runs of a suite, and the commands that do each by itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmnas.lab.bench.suite import Suite, SuiteTask
from bmnas.lab.jobs.job import Job
from bmnas.pipeline.config import load_preset
from bmnas.tasks import load_task

#: The strategy whose genotypes the known modules take their pairs of features from.
_FIRST = "search bmnas"


def suite_jobs(suite: Suite) -> list[Job]:
    """Return the runs of ``suite``; raises UserError where a task or preset cannot be loaded."""
    return [
        job
        for task in suite.task
        for job in task_jobs(task, suite.ways(), seeds=range(suite.seeds))
    ]


def task_jobs(wanted: SuiteTask, ways: Sequence[str], *, seeds: Sequence[int]) -> list[Job]:
    """Return a run for each of ``seeds`` and ``ways`` to fuse on one task."""
    task = load_task(wanted.name, wanted.folder)
    config = load_preset(wanted.preset or task.preset)

    def folder(seed: int, way: str) -> str:
        return f"{wanted.slug}/{seed}/{way.replace(' ', '-').replace('/', '-')}"

    return [
        Job(
            folder(seed, way),
            way,
            {"name": task.name, "source": task.source},
            seed,
            config,
            {"task": wanted.name, "way": way, "seed": seed},
            ("search", "train", "export") if way.startswith("search ") else ("train", "export"),
            after=folder(seed, _FIRST) if way.startswith("module ") else None,
        )
        for seed in seeds
        for way in ways
    ]


def commands(job: Job, wanted: SuiteTask, folder: Path) -> list[str]:
    """Return the commands that do ``job`` below ``folder``.

    The genotype of a known module, which no command makes, lies in its run folder.
    """
    run, (kind, _, name) = folder / job.name, job.way.partition(" ")
    options: dict[str, Any] = {"task": wanted.name}
    if wanted.data is not None:
        given = Path(wanted.data)
        options["data"] = given if given.is_absolute() else f"$BMNAS_DATA/{given}"
    options |= {"run": run, "backbones": folder / job.backbones, "seed": job.seed}
    if wanted.preset is not None:
        options["preset"] = wanted.preset
    genotype = {"genotype": run / "genotype.json"}
    if kind == "search":
        strategy = {} if name == "bmnas" else {"strategy": name}
        made = [_command("search", {**options, **strategy}), _command("train", genotype)]
    elif kind == "fusion":
        made = [_command("train", {"fusion": name, **options})]
    else:
        made = [_command("train", {**genotype, **options})]
    return [*made, _command("export", {"run": run})]


def _command(name: str, options: dict[str, Any]) -> str:
    words = (f"--{key} {_quoted(str(value))}" for key, value in options.items())
    return " ".join([f"bmnas {name}", *words])


def _quoted(word: str) -> str:
    # The shell is to see the name of the variable.
    return f'"{word}"' if word.startswith("$") else shlex.quote(word)
