"""``bmnas bench``: a suite of runs and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bmnas.cli.options import Device, Json

if TYPE_CHECKING:
    from bmnas.tasks.task import Task


def bench(
    suite: Annotated[
        str, typer.Argument(help="A suite's name, or the path of a .toml file.")
    ] = "digits",
    quick: Annotated[
        bool, typer.Option("--quick", help="The suite's quick form.", show_default=False)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for runs and report; what is done there is not done again.",
            show_default="runs/bench/<suite>",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Number of seeds, from 0.", show_default="the suite's"),
    ] = None,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Report on what is done so far.", show_default=False),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run every way to fuse on the same features; write report.html, report.md and report.json.

    Searches, hand-made fusions and known modules share unimodal networks and features of a task
    and seed, are trained alike, tested once and exported. A suite that was stopped goes on where
    it was.

    Example: bmnas bench digits --quick
    """
    import dataclasses
    import json
    import shlex
    import sys

    from bmnas.cli.export import require_export
    from bmnas.lab.bench.jobs import done, jobs_of, run_jobs
    from bmnas.lab.bench.regret import measure_regrets, read_table
    from bmnas.lab.bench.report import report_rows, write_report
    from bmnas.lab.bench.suite import load_suite
    from bmnas.machine.errors import UserError
    from bmnas.machine.progress import Bars
    from bmnas.machine.runtime import Runtime
    from bmnas.report.record import load_run
    from bmnas.report.rows import row_to_dict
    from bmnas.report.tables import comparison_tables, print_tables

    chosen = load_suite(_quick(suite) if quick else suite)
    if seeds is not None:
        chosen = dataclasses.replace(chosen, seeds=seeds)
    folder = Path("runs") / "bench" / chosen.name if out is None else out
    jobs = jobs_of(chosen, folder)
    if not report_only:
        # Before the first search, not after it.
        require_export()
        for table in chosen.tables:
            read_table(table)
        run_jobs(jobs, Runtime.choose(device), _export, Bars())
    finished = list(done(jobs))
    if not finished:
        raise UserError(f"{folder}: no run of the suite {chosen.name} is done yet")
    command = shlex.join(["bmnas", *sys.argv[1:]])
    regrets = [measure_regrets(table) for table in chosen.tables]
    files = write_report(chosen, finished, regrets, folder, command)
    rows = report_rows({job: load_run(job.run) for job in finished})
    if as_json:
        written = [str(file) for file in files]
        print(json.dumps({"rows": [row_to_dict(row) for row in rows], "out": written}, indent=2))
        return
    print_tables(comparison_tables(rows))
    typer.echo(f"wrote {', '.join(str(file) for file in files)}", err=True)


def _quick(suite: str) -> str:
    from bmnas.lab.bench.suite import suite_names
    from bmnas.machine.errors import UserError

    name = f"{suite}-quick"
    if name not in suite_names():
        have = [n.removesuffix("-quick") for n in suite_names() if n.endswith("-quick")]
        raise UserError(f"--quick: received suite {suite!r}, expected {', '.join(have)}")
    return name


def _export(run: Path, task: Task) -> None:
    from bmnas.cli.export import export_run

    export_run(run, task)
