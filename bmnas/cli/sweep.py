"""``bmnas sweep``: many searches, over tasks, seeds and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmnas.cli.options import Data, Json, Preset, grouped
from bmnas.cli.output import print_json
from bmnas.cli.workers import WorkOptions


@grouped
def sweep(
    *,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="What to try, a .toml file; see docs/scaling.md.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the sweep.",
            show_default="runs/<file>, runs/<task>-sweep",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=V1,V2…",
            help="Values to combine with all others: task, preset, strategy, space, seed, or a "
            "value of a preset such as search.channels.",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="As for search.", show_default="digits")] = None,
    data: Data = None,
    preset: Preset = None,
    train: Annotated[bool, typer.Option("--train", help="Train and test what is found.")] = False,
    work: WorkOptions,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the runs not done.")] = False,
    as_json: Json = False,
) -> None:
    """Search with every combination of some settings, each in a run folder of its own.

    Backbones and features are made once for the runs that agree on them. A run that fails does not
    stop the others; the exit status is then 1. The table says how each ended, and so does
    sweep.json in the folder.

    Example: bmnas sweep --task digits --set seed=0,1 --set search.channels=16,32 --workers 2
    """
    from bmnas.lab.jobs.folder import jobs_table
    from bmnas.lab.sweep import read_sweep, sweep_jobs
    from bmnas.report.tables import print_tables

    given = {"task": task, "data": None if data is None else str(data), "preset": preset}
    setups = read_sweep(file, given, grid or [])
    name = f"{Path(setups[0].settings['task']).stem}-sweep" if file is None else file.stem
    folder = Path("runs") / name if run is None else run
    jobs = sweep_jobs(setups, train=train)
    records = work.run(jobs, folder, option="--run", resume=resume)
    if as_json:
        print_json({"folder": str(folder), "trials": [vars(record) for record in records]})
    else:
        # The best validation score first, runs without one last.
        best = sorted(records, key=lambda r: 1.0 if r.validation is None else -r.validation)
        print_tables([jobs_table(best, "Sweep")])
        typer.echo(f"Next: bmnas compare {folder}/*/", err=True)
    if any(record.state != "done" for record in records):
        raise typer.Exit(1)
