"""``bmnas sweep`` and ``bmnas bench``: many runs, side by side."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from bmnas.cli.options import Data, Device, Json, Preset, grouped
from bmnas.cli.output import print_json
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Bars
from bmnas.report.tables import print_tables

if TYPE_CHECKING:
    from bmnas.lab.engines import JobRecord
    from bmnas.lab.job import Job


@dataclass(frozen=True)
class JobOptions:
    """How many runs go side by side, and where."""

    engine: Annotated[
        Literal["local", "ray"],
        Option(help="local: processes of this machine; ray: Ray, also on a cluster."),
    ] = "local"
    workers: Annotated[int, Option(help="Runs at a time.")] = 1
    retries: Annotated[
        int, Option(help="Times that a run whose process was lost is taken up again.")
    ] = 2
    device: Device = "auto"

    def run(
        self, jobs: Sequence[Job], folder: Path, *, option: str, resume: bool
    ) -> list[JobRecord]:
        """Do ``jobs`` below ``folder``, which ``option`` names, and return how each ended."""
        from bmnas.cli.workers import workers
        from bmnas.lab.engines import run_local, run_on_ray
        from bmnas.lab.runs import run_jobs
        from bmnas.machine.runtime import Runtime

        # Before anything is done: whether there is such a device, and Ray.
        if self.engine == "local":
            Runtime.choose(self.device)
        else:
            import ray  # noqa: F401
        return run_jobs(
            jobs,
            folder,
            workers(self.workers, self.retries),
            run_local if self.engine == "local" else run_on_ray,
            device=self.device,
            option=option,
            resume=resume,
            progress=Bars(),
        )


@grouped
def sweep(
    *,
    file: Annotated[
        Path | None, Argument(help="What to try, a .toml file; see docs/scaling.md.")
    ] = None,
    run: Annotated[
        Path | None,
        Option(help="Folder of the sweep, by default runs/<file> or runs/<task>-sweep."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="KEY=V1,V2…",
            help="Values to combine with all others: task, preset, strategy, space, seed, or a "
            "value of a preset such as search.channels.",
        ),
    ] = None,
    task: Annotated[str | None, Option(help="As for search, by default digits.")] = None,
    data: Data = None,
    preset: Preset = None,
    train: Annotated[bool, Option("--train", help="Train and test what is found.")] = False,
    work: JobOptions,
    resume: Annotated[bool, Option("--resume", help="Go on with the runs not done.")] = False,
    as_json: Json = False,
) -> None:
    """Search with every combination of some settings, each in a run folder of its own.

    Backbones and features are made once for the runs that agree on them. A run that fails does not
    stop the others; the exit status is then 1. The table says how each ended, and so does
    sweep.json in the folder.

    Example: bmnas sweep --task digits --set seed=0,1 --set search.channels=16,32 --workers 2
    """
    from bmnas.lab.runs import jobs_table
    from bmnas.lab.sweep import read_sweep, sweep_jobs

    given = {"task": task, "data": None if data is None else str(data), "preset": preset}
    setups = read_sweep(file, given, grid or [])
    name = f"{Path(setups[0].settings['task']).stem}-sweep" if file is None else file.stem
    folder = Path("runs") / name if run is None else run
    jobs = sweep_jobs(setups, train=train)
    records = work.run(jobs, folder, option="--run", resume=resume)
    if as_json:
        print_json({"folder": folder, "trials": [vars(record) for record in records]})
    else:
        # The best validation score first, runs without one last.
        best = sorted(records, key=lambda r: 1.0 if r.validation is None else -r.validation)
        print_tables([jobs_table(best, "Sweep")])
        typer.echo(f"Next: bmnas compare {folder}/*/", err=True)
    if any(record.state != "done" for record in records):
        raise typer.Exit(1)


@grouped
def bench(
    *,
    suite: Annotated[str, Argument(help="A suite's name, or the path of a .toml file.")] = "digits",
    quick: Annotated[bool, Option("--quick", help="The suite's quick form.")] = False,
    out: Annotated[
        Path | None,
        Option(
            help="Folder for runs and report, by default runs/bench/<suite>; what is done there is "
            "not done again."
        ),
    ] = None,
    seeds: Annotated[
        int | None, Option(min=1, help="Number of seeds, from 0; by default the suite's.")
    ] = None,
    robustness: Annotated[
        bool,
        Option("--robustness", help="Test also with noise, words left out, modalities missing."),
    ] = False,
    report_only: Annotated[
        bool, Option("--report-only", help="Report on what is done so far.")
    ] = False,
    work: JobOptions,
    as_json: Json = False,
) -> None:
    """Run every way to fuse on the same features; write report.html, report.md and report.json.

    Searches, hand-made fusions and known modules share unimodal networks and features of a task
    and seed, are trained alike, tested once and exported; a suite may have linear models of raw
    inputs beside them. The last tables say which row is best over all tasks. A suite that was
    stopped goes on where it was. Latencies are measured while other workers work: compare those of
    one worker.

    Example: bmnas bench digits --quick
    """
    from bmnas.cli.export import require_export
    from bmnas.lab.suite import load_suite, suite_jobs, suite_tables, write_report

    chosen = load_suite(suite, quick=quick)
    chosen = dataclasses.replace(
        chosen, seeds=seeds or chosen.seeds, robustness=chosen.robustness or robustness
    )
    folder = Path("runs") / "bench" / chosen.name if out is None else out
    jobs = suite_jobs(chosen)
    failed = False
    if not report_only:
        # Before the first search, not after it.
        require_export()
        records = work.run(jobs, folder, option="--out", resume=True)
        failed = any(record.state != "done" for record in records)
    done = [job for job in jobs if job.trained(folder)]
    if not done:
        raise UserError(f"{folder}: no run of the suite {chosen.name} is done yet")
    rows, files = write_report(chosen, done, folder, shlex.join(["bmnas", *sys.argv[1:]]))
    if as_json:
        print_json({"rows": [row.to_dict() for row in rows], "out": files})
    else:
        print_tables(suite_tables(chosen, rows))
        typer.echo(f"wrote {', '.join(map(str, files))}", err=True)
    if failed:
        raise typer.Exit(1)
