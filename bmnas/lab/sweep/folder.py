"""A sweep's folder: a run folder for each trial, what they share, and ``sweep.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmnas.lab.sweep.engine import Engine, Result, RunJobs
from bmnas.lab.sweep.job import Job, attempts
from bmnas.lab.sweep.plan import Plan, Trial
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, write_json
from bmnas.machine.progress import Progress, Silent
from bmnas.pipeline.config import Config
from bmnas.pipeline.run_folder import Run, locked
from bmnas.tasks import load_task

FORMAT = "bmnas.sweep/1"


@dataclass(frozen=True)
class TrialRecord:
    """How a trial stands: ``done``, ``failed``, ``lost`` or ``waiting``; scores as fractions."""

    name: str
    settings: Mapping[str, Any]
    state: str = "waiting"
    attempts: int = 0
    error: str | None = None
    metric: str | None = None
    validation: float | None = None
    test: float | None = None
    seconds: float | None = None


def run_sweep(
    plan: Plan,
    folder: Path,
    *,
    engine: RunJobs,
    workers: int = 1,
    retries: int = 2,
    device: str = "auto",
    resume: bool = False,
    progress: Progress | None = None,
) -> list[TrialRecord]:
    """Do every trial of ``plan`` in ``folder`` and return how each ended, in their order.

    Backbones and features are made first, once for all trials that agree on them. A trial that a
    UserError ended is told and not repeated; one whose process was lost is started again, up to
    ``retries`` times, and goes on where it was. Raises UserError for a plan that cannot be run,
    and for a folder that holds a sweep, unless ``resume`` is set and it is the same one.
    """
    for option, number, least in (("--workers", workers, 1), ("--retries", retries, 0)):
        if number < least:
            raise UserError(f"{option}: received {number}, expected {least} or more")
    folder = folder.resolve()
    sweep = _Sweep(plan, folder, device, _configs(plan))
    with locked(folder):
        sweep.open(resume)
        at_work = Engine(workers, retries, folder / ".scratch")
        sweep.run(engine, at_work, progress or Silent())
    return sweep.records


def _configs(plan: Plan) -> list[Config]:
    """Return the configuration of every trial; raises UserError for one that cannot be."""
    presets = {}
    configs = []
    for trial in plan.trials:
        place = str(trial.settings["task"]), trial.settings.get("data")
        if place not in presets:
            name, data = place
            presets[place] = load_task(name, None if data is None else Path(data)).preset
        configs.append(trial.config(presets[place]))
    return configs


@dataclass
class _Sweep:
    plan: Plan
    folder: Path
    device: str
    configs: Sequence[Config]
    records: list[TrialRecord] = field(default_factory=list)

    def open(self, resume: bool) -> None:
        """Take the folder; what is finished there stays."""
        path = self.folder / "sweep.json"
        wanted = {"train": self.plan.train, "trials": [_identity(t) for t in self.plan.trials]}
        if path.is_file():
            found = read_json(path)
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                raise UserError(f"{path}: received an unknown format, expected {FORMAT!r}")
            if not resume:
                raise UserError(
                    f"{self.folder}: holds a sweep already; go on with --resume, or choose another "
                    "folder with --run"
                )
            if found.get("plan") != json.loads(json.dumps(wanted)):
                raise UserError(
                    f"{self.folder}: holds a sweep of other trials; resume it with the same file "
                    "and options, or choose another folder with --run"
                )
        self.records = [TrialRecord(t.name, dict(t.varied)) for t in self.plan.trials]
        for number, trial in enumerate(self.plan.trials):
            if self._finished(trial):
                self._ended(number, "done", None)
        self._save()

    def run(self, engine: RunJobs, at_work: Engine, progress: Progress) -> None:
        """Do what is not finished: backbones first, then trials."""
        open_trials = [n for n, record in enumerate(self.records) if record.state != "done"]
        groups = {self._group(n): n for n in reversed(open_trials)}
        spoilt = {
            result.name: result
            for result in self._do(
                [self._backbones_job(n, open_trials) for n in reversed(groups.values())],
                engine, at_work, progress, "backbones",
            )
            if result.state != "done"
        }  # fmt: skip
        ready = []
        for number in open_trials:
            result = spoilt.get(f"backbones-{self._group(number)}")
            if result is None:
                ready.append(number)
            else:
                self._ended(number, result.state, f"its backbones: {result.error}")
        self._save()
        numbers = {self.plan.trials[n].name: n for n in ready}

        def told(result: Result) -> None:
            self._ended(numbers[result.name], result.state, result.error)
            self._save()

        self._do([self._trial_job(n) for n in ready], engine, at_work, progress, "trials", told)

    def _do(
        self,
        jobs: Sequence[Job],
        engine: RunJobs,
        at_work: Engine,
        progress: Progress,
        what: str,
        told: Callable[[Result], None] = lambda result: None,
    ) -> list[Result]:
        found: list[Result] = []
        one_at_a_time = threading.Lock()
        if not jobs:
            return found
        with progress.stage(what, len(jobs)) as shown:

            def note(result: Result) -> None:
                with one_at_a_time:
                    found.append(result)
                    told(result)
                    if result.error is not None:
                        progress.note(f"{result.name}: {result.state}: {result.error}")
                    shown.advance()

            engine(jobs, at_work, note)
        return found

    def _finished(self, trial: Trial) -> bool:
        run = Run(self.folder / trial.name)
        return (run.network if self.plan.train else run.genotype).is_file()

    def _ended(self, number: int, state: str, error: str | None) -> None:
        trial = self.plan.trials[number]
        metrics = Run(self.folder / trial.name).read_metrics() if state == "done" else {}
        self.records[number] = TrialRecord(
            trial.name,
            dict(trial.varied),
            state,
            len(attempts(self._attempts(trial.name))),
            error,
            metrics.get("metric"),
            metrics.get("search", {}).get("validation"),
            metrics.get("test", {}).get("score"),
            metrics.get("seconds", {}).get("search"),
        )

    def _save(self) -> None:
        plan = {"train": self.plan.train, "trials": [_identity(t) for t in self.plan.trials]}
        trials = [dataclasses.asdict(record) for record in self.records]
        write_json(self.folder / "sweep.json", {"format": FORMAT, "plan": plan, "trials": trials})

    def _group(self, number: int) -> str:
        """Return a digest of what the backbones of a trial depend on."""
        trial = self.plan.trials[number]
        depends = {
            "task": trial.settings["task"],
            "data": trial.settings.get("data"),
            "seed": trial.settings["seed"],
            "unimodal": dataclasses.asdict(self.configs[number].unimodal),
        }
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]

    def _backbones_job(self, number: int, trials: Sequence[int]) -> dict[str, Any]:
        group = self._group(number)
        settings = [self.configs[n].search for n in trials if self._group(n) == group]
        caches = {(config.length, config.cache_dtype) for config in settings}
        name = f"backbones-{group}"
        job = self._job(number, name)
        return {**job, "kind": "backbones", "caches": sorted(caches)}

    def _trial_job(self, number: int) -> dict[str, Any]:
        trial = self.plan.trials[number]
        job = self._job(number, trial.name)
        run = str(self.folder / trial.name)
        return {
            **job,
            "kind": "trial",
            "run": run,
            "strategy": trial.settings["strategy"],
            "train": self.plan.train,
        }

    def _job(self, number: int, name: str) -> dict[str, Any]:
        settings, config = self.plan.trials[number].settings, self.configs[number]
        return {
            "name": name,
            "attempts": str(self._attempts(name)),
            "task": _absolute(settings["task"]),
            "data": None if "data" not in settings else str(Path(settings["data"]).resolve()),
            "seed": settings["seed"],
            "preset": config.preset,
            "config": config.to_dict(),
            "backbones": str(self.folder / ".backbones" / self._group(number)),
            "device": self.device,
        }

    def _attempts(self, name: str) -> Path:
        return self.folder / ".attempts" / f"{name}.jsonl"


def _identity(trial: Trial) -> dict[str, Any]:
    return {"name": trial.name, "settings": dict(trial.settings)}


def _absolute(task: str) -> str:
    """Return ``task`` such that it means the same in every process's folder."""
    return str(Path(task).resolve()) if task.endswith(".toml") else task
