"""``bmnas sweep``: many searches, over tasks, seeds and settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bmnas.cli.options import Data, Device, Json

if TYPE_CHECKING:
    from bmnas.lab.sweep.engine import RunJobs
    from bmnas.lab.sweep.folder import TrialRecord

_TRIALS = "Trials"
_WORK = "Work"


def sweep(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="What to try, a .toml file; see docs/scaling.md.",
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
            help="Values to combine with all others: task, preset, strategy, seed, or a value of "
            "a preset such as search.channels.",
            rich_help_panel=_TRIALS,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="As for search.", show_default="digits", rich_help_panel=_TRIALS),
    ] = None,
    data: Data = None,
    preset: Annotated[
        str | None,
        typer.Option(help="As for search.", show_default="the task's", rich_help_panel=_TRIALS),
    ] = None,
    train: Annotated[
        bool,
        typer.Option("--train", help="Train and test what is found.", rich_help_panel=_TRIALS),
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="local: processes of this machine; ray: Ray Tune, also on a cluster.",
            rich_help_panel=_WORK,
        ),
    ] = "local",
    workers: Annotated[
        int, typer.Option(help="Trials at a time.", rich_help_panel=_WORK)
    ] = 1,
    retries: Annotated[
        int,
        typer.Option(
            help="Times that a trial whose process was lost is taken up again.",
            rich_help_panel=_WORK,
        ),
    ] = 2,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the trials that are not done.")
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Search with every combination of some settings, each trial in a run folder of its own.

    Backbones and features are made once for the trials that agree on them.

    A trial that fails does not stop the others; the exit status is then 1.

    The table says how each ended, and so does sweep.json in the folder.

    Example: bmnas sweep --task digits --set seed=0,1 --set search.channels=16,32 --workers 2
    """
    from bmnas.lab.sweep.folder import run_sweep
    from bmnas.lab.sweep.plan import make_plan
    from bmnas.machine.progress import Bars

    given = {"task": task, "data": None if data is None else str(data), "preset": preset}
    plan = make_plan(file, given, grid or [], train=train)
    task_name = Path(str(plan.trials[0].settings["task"])).stem
    name = f"{task_name}-sweep" if file is None else file.stem
    folder = Path("runs") / name if run is None else run
    records = run_sweep(
        plan,
        folder,
        engine=_engine(engine),
        workers=workers,
        retries=retries,
        device=device,
        resume=resume,
        progress=Bars(),
    )
    _print(folder, records, as_json)
    if any(record.state != "done" for record in records):
        raise typer.Exit(1)


def _engine(name: str) -> RunJobs:
    if name == "local":
        from bmnas.lab.sweep.local import run_local

        return run_local
    # Now, so that what is missing is told before anything is done.
    import ray

    try:
        import ray.tune
    except ImportError as error:
        from bmnas.machine.errors import UserError

        raise UserError(
            f"ray {ray.__version__} lacks what ray.tune needs: run pip install 'bmnas[sweep]'"
        ) from error

    from bmnas.lab.sweep.on_ray import run_on_ray

    return run_on_ray


def _print(folder: Path, records: list[TrialRecord], as_json: bool) -> None:
    import dataclasses
    import json

    if as_json:
        trials = [dataclasses.asdict(record) for record in records]
        print(json.dumps({"folder": str(folder), "trials": trials}, indent=2))
        return
    from bmnas.lab.sweep.table import sweep_tables
    from bmnas.report.tables import print_tables

    print_tables(sweep_tables(records))
    typer.echo(f"Next: bmnas compare {folder}/*/", err=True)
