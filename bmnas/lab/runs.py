"""The folder of many runs: a run folder for each job, what they share, and ``sweep.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bmnas.lab.engines import Engine, JobRecord, Workers
from bmnas.lab.job import Job, backbones_jobs
from bmnas.machine.distributed import lock_folders
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, sha256_json, write_json
from bmnas.machine.progress import Progress
from bmnas.machine.schema import plain, read
from bmnas.pipeline.run_folder import Run, differing
from bmnas.report.metrics import RunMetrics
from bmnas.report.tables import DASH, TextTable

_NAME = "sweep.json"


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
    job: Job, folder: Path, result: JobRecord, earlier: Mapping[str, JobRecord]
) -> JobRecord:
    """Return ``result`` with what ``job`` left below ``folder`` and the attempts of ``earlier``."""
    done = result.state == "done"
    metrics = Run(folder / job.name).read_metrics() if done else RunMetrics()
    before = earlier[job.name].attempts if job.name in earlier else 0
    return dataclasses.replace(
        result,
        settings=job.label,
        attempts=before + result.attempts,
        metric=metrics.metric,
        validation=metrics.validation_score,
        test=metrics.test_score,
        seconds=metrics.seconds.get("search"),
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
    with lock_folders(folder):
        earlier = read_records(folder)
        if earlier and not resume:
            raise UserError(
                f"{folder}: holds a sweep already; go on with --resume, or choose another folder "
                f"with {option}"
            )
        for job in jobs:
            _require_same(job, folder, option)
        return _run(jobs, folder, workers, engine, device, earlier, progress or Progress())


def _run(
    jobs: Sequence[Job],
    folder: Path,
    workers: Workers,
    engine: Engine,
    device: str,
    earlier: Mapping[str, JobRecord],
    progress: Progress,
) -> list[JobRecord]:
    """Do what is not finished, see ``_waves``."""
    records = {job.name: JobRecord(job.name, job.label) for job in jobs}
    by_name, ended = {job.name: job for job in jobs}, dict[str, JobRecord]()

    def end(result: JobRecord) -> None:
        ended[result.name] = result
        if result.name in by_name:
            records[result.name] = record_of(by_name[result.name], folder, result, earlier)

    def save() -> None:
        trials = {**earlier, **records}.values()
        write_json(folder / _NAME, plain(_File(tuple(trials))))

    for job in jobs:
        if job.finished(folder):
            end(JobRecord(job.name, state="done"))
    save()
    left = [job for job in jobs if job.name not in ended]
    waves = list(_waves(left))
    with progress.stage("runs", sum(map(len, waves))) as shown:

        def told(result: JobRecord) -> None:
            if result.error is not None:
                progress.note(f"{result.name}: {result.state}: {result.error}")
            end(result)
            save()
            shown.advance()

        for wave in waves:
            orders = []
            for job in wave:
                needed = [ended[name] for name in (job.backbones, job.after) if name in ended]
                spoilt = next((result for result in needed if result.state != "done"), None)
                if spoilt is None:
                    orders.append(job.order(folder.resolve(), device))
                else:
                    what = "backbones" if spoilt.name == job.backbones else spoilt.name
                    error = f"its {what}: {spoilt.error}"
                    told(JobRecord(job.name, state=spoilt.state, error=error))
            if orders:
                engine(orders, workers, told)
    return list(records.values())


def _waves(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield what may be done side by side, task by task, so that the first ones soon have results.

    Backbones, then jobs, then those that start from another one's.
    """
    tasks: dict[str, list[Job]] = {}
    for job in jobs:
        tasks.setdefault(sha256_json(job.task), []).append(job)
    for group in tasks.values():
        yield backbones_jobs(group)
        yield [job for job in group if not job.after]
        yield [job for job in group if job.after]


def _require_same(job: Job, folder: Path, option: str) -> None:
    """Raise UserError where the run of a job was made with other settings."""
    run = Run(folder / job.name)
    if not run.config.is_file() or not run.begun():
        return
    kind, name = job.way.partition(" ")[0], job.strategy
    own = {"strategy": name, "space": job.space}
    wanted = {"task": job.task, "seed": job.seed, **own, **job.config.to_dict()}
    keys = ["task", "seed", "unimodal", "search"]
    if kind == "search":
        keys += ["strategy", "space", *([name] if name in wanted else [])]
    if "train" in job.stages and run.network.is_file():
        keys.append("train")
    what = differing(run, wanted, tuple(keys))
    if what is not None:
        raise UserError(f"{run.path}: holds a run with {what}; choose another folder with {option}")
