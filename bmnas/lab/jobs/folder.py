"""The folder of many runs: a run folder for each job, what they share, and ``sweep.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bmnas.lab.jobs.engine import Engine, Result, Workers
from bmnas.lab.jobs.job import Job, backbones_jobs
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, write_json
from bmnas.machine.folder_lock import lock_folders
from bmnas.machine.progress import Progress, Silent
from bmnas.machine.schema import plain, read
from bmnas.pipeline.run_folder import Run, differing
from bmnas.report.metrics import RunMetrics
from bmnas.report.rows import DASH
from bmnas.report.tables import TextTable

_NAME = "sweep.json"


@dataclass(frozen=True)
class JobRecord:
    """How a job stands: ``done``, ``failed``, ``lost`` or ``waiting``; scores as fractions."""

    name: str
    settings: Mapping[str, Any]
    state: str = "waiting"
    attempts: int = 0
    error: str | None = None
    metric: str | None = None
    validation: float | None = None
    test: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class _File:
    """The content of ``sweep.json``."""

    trials: tuple[JobRecord, ...]
    format: Literal["bmnas.sweep/2"] = "bmnas.sweep/2"


def read_records(folder: Path) -> dict[str, JobRecord]:
    """Return how the jobs of earlier calls stand, by name; raises UserError for a damaged file."""
    path = folder / _NAME
    if not path.is_file():
        return {}
    return {record.name: record for record in read(_File, read_json(path), str(path)).trials}


def record_of(
    job: Job, folder: Path, result: Result, earlier: Mapping[str, JobRecord]
) -> JobRecord:
    """Return how ``job`` stands below ``folder`` after ``earlier`` calls and ``result``."""
    done = result.state == "done"
    metrics = Run(folder / job.name).read_metrics() if done else RunMetrics()
    before = earlier[job.name].attempts if job.name in earlier else 0
    return JobRecord(
        job.name,
        job.label,
        result.state,
        before + result.attempts,
        result.error,
        metrics.metric,
        metrics.validation_score,
        metrics.test_score,
        metrics.seconds.get("search"),
    )


def jobs_table(records: Sequence[JobRecord], title: str) -> TextTable:
    """Return a table with a row for each of ``records``: what was varied, scores and cost."""
    keys = list(dict.fromkeys(key for record in records for key in record.settings))
    metrics = dict.fromkeys(r.metric.replace("_", " ") for r in records if r.metric)
    heads = ("run", *keys, "state", "validation", "test", "search s", "attempts")
    rows = []
    for record in records:
        varied = [record.settings.get(key, DASH) for key in keys]
        numbers = (record.validation, ".4f"), (record.test, ".4f"), (record.seconds, ".1f")
        row = (
            record.name,
            *(value if isinstance(value, str) else json.dumps(value) for value in varied),
            record.state,
            *(DASH if value is None else format(value, spec) for value, spec in numbers),
            str(record.attempts),
        )
        rows.append(row)
    return TextTable(", ".join([title, *metrics]), heads, tuple(rows), words=2 + len(keys))


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    workers: Workers,
    engine: Engine,
    *,
    device: str = "auto",
    option: str = "--run",
    resume: bool = False,
    progress: Progress | None = None,
) -> list[JobRecord]:
    """Do every job in ``folder`` and return how each ended, in their order.

    Backbones and features are made first, once for all jobs that agree on them; a job that starts
    from the genotype of another one waits for it. A job that a UserError ended is told and not
    repeated; one whose process was lost is started again and goes on where it was. What is finished
    stays. Raises UserError for a folder that holds a sweep, unless ``resume`` is set, and for one
    with a run of other settings; ``option`` is the one that names the folder.
    """
    for name, number, least in (("--workers", workers.count, 1), ("--retries", workers.retries, 0)):
        if number < least:
            raise UserError(f"{name}: received {number}, expected {least} or more")
    many = _Many(jobs, folder, option)
    with lock_folders(folder):
        many.open(resume)
        many.run(engine, workers, device, progress or Silent())
    return list(many.records.values())


@dataclass
class _Many:
    jobs: Sequence[Job]
    folder: Path
    option: str
    records: dict[str, JobRecord] = field(default_factory=dict)
    earlier: dict[str, JobRecord] = field(default_factory=dict)

    def open(self, resume: bool) -> None:
        """Take the folder; what is finished there stays."""
        self.earlier = read_records(self.folder)
        if self.earlier and not resume:
            raise UserError(
                f"{self.folder}: holds a sweep already; go on with --resume, or choose another "
                f"folder with {self.option}"
            )
        for job in self.jobs:
            self._check(job)
        self.records = {job.name: JobRecord(job.name, job.label) for job in self.jobs}
        for job in self.jobs:
            if job.finished(self.folder):
                self._end(job, Result(job.name, "done"))
        self._save()

    def run(self, engine: Engine, workers: Workers, device: str, progress: Progress) -> None:
        """Do what is not finished, each job once those that it needs are done."""
        ended = {
            name: Result(name, "done") for name, r in self.records.items() if r.state == "done"
        }
        waiting = [job for job in self.jobs if job.name not in ended]
        shared = backbones_jobs(waiting)
        needs: dict[str, list[str]] = {job.name: [] for job in shared}
        for job in waiting:
            needs[job.name] = [job.backbones, *([] if job.after is None else [job.after])]
        waiting = [*shared, *waiting]
        by_name = {job.name: job for job in waiting}
        if not waiting:
            return
        with progress.stage("runs", len(waiting)) as shown:

            def told(result: Result) -> None:
                ended[result.name] = result
                if result.error is not None:
                    progress.note(f"{result.name}: {result.state}: {result.error}")
                if result.name in self.records:
                    self._end(by_name[result.name], result)
                    self._save()
                shown.advance()

            while waiting:
                ready = [job for job in waiting if ended.keys() >= set(needs[job.name])]
                assert ready, "a job waits for one that is not among them"
                waiting = [job for job in waiting if job not in ready]
                orders = []
                for job in ready:
                    spoilt = [ended[n] for n in needs[job.name] if ended[n].state != "done"]
                    if spoilt:
                        what = "backbones" if spoilt[0].name == job.backbones else spoilt[0].name
                        error = f"its {what}: {spoilt[0].error}"
                        told(Result(job.name, spoilt[0].state, error))
                    else:
                        orders.append(job.order(self.folder.resolve(), device))
                if orders:
                    engine(orders, workers, told)

    def _check(self, job: Job) -> None:
        """Raise UserError where the run of a job was made with other settings."""
        run = Run(self.folder / job.name)
        if not run.config.is_file() or not run.begun():
            return
        kind, _, name = job.way.partition(" ")
        own = {"strategy": name, "space": job.space}
        wanted = {"task": job.task, "seed": job.seed, **own, **job.config.to_dict()}
        keys = ["task", "seed", "unimodal", "search"]
        if kind == "search":
            keys += ["strategy", "space", *([name] if name in wanted else [])]
        if "train" in job.stages and run.network.is_file():
            keys.append("train")
        what = differing(run, wanted, tuple(keys))
        if what is not None:
            raise UserError(
                f"{run.path}: holds a run with {what}; choose another folder with {self.option}"
            )

    def _end(self, job: Job, result: Result) -> None:
        self.records[job.name] = record_of(job, self.folder, result, self.earlier)

    def _save(self) -> None:
        trials = {**self.earlier, **self.records}.values()
        write_json(self.folder / _NAME, plain(_File(tuple(trials))))
