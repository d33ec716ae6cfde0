"""``bmnas bench``: a suite of runs and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmnas.cli.options import Json, grouped
from bmnas.cli.output import print_json
from bmnas.cli.workers import WorkOptions

SuiteName = Annotated[str, typer.Argument(help="A suite's name, or the path of a .toml file.")]
Quick = Annotated[bool, typer.Option("--quick", help="The suite's quick form.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for runs and report; what is done there is not done again.",
        show_default="runs/bench/<suite>",
    ),
]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="Number of seeds, from 0.", show_default="the suite's")
]
ReportOnly = Annotated[
    bool, typer.Option("--report-only", help="Report on what is done so far.", show_default=False)
]


@grouped
def bench(
    *,
    suite: SuiteName = "digits",
    quick: Quick = False,
    out: Out = None,
    seeds: Seeds = None,
    report_only: ReportOnly = False,
    work: WorkOptions,
    as_json: Json = False,
) -> None:
    """Run every way to fuse on the same features; write report.html, report.md and report.json.

    Searches, hand-made fusions and known modules share unimodal networks and features of a task
    and seed, are trained alike, tested once and exported. A suite that was stopped goes on where
    it was. Latencies are measured while other workers work: compare those of one worker.

    Example: bmnas bench digits --quick
    """
    import dataclasses
    import shlex
    import sys

    from bmnas.cli.export import require_export
    from bmnas.lab.bench.report import write_report
    from bmnas.lab.bench.suite import load_suite, suite_jobs
    from bmnas.machine.errors import UserError
    from bmnas.report.tables import comparison_tables, print_tables

    chosen = load_suite(suite, quick=quick)
    if seeds is not None:
        chosen = dataclasses.replace(chosen, seeds=seeds)
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
    command = shlex.join(["bmnas", *sys.argv[1:]])
    rows, files = write_report(chosen, done, folder, command)
    written = [str(file) for file in files]
    if as_json:
        print_json({"rows": [row.to_dict() for row in rows], "out": written})
    else:
        print_tables(comparison_tables(rows))
        typer.echo(f"wrote {', '.join(written)}", err=True)
    if failed:
        raise typer.Exit(1)
