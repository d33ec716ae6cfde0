"""How commands that do many runs have them done: ``python -m bmnas.cli.workers`` does one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bmnas.cli.options import Device
from bmnas.machine.errors import UserError, one_line

if TYPE_CHECKING:
    from bmnas.lab.jobs.engine import Engine, Workers
    from bmnas.lab.jobs.folder import JobRecord
    from bmnas.lab.jobs.job import Job

_WORK = "Work"


@dataclass(frozen=True)
class WorkOptions:
    """How many runs go side by side, and where."""

    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="local: processes of this machine; ray: Ray, also on a cluster.",
            rich_help_panel=_WORK,
        ),
    ] = "local"
    workers: Annotated[int, typer.Option(help="Runs at a time.", rich_help_panel=_WORK)] = 1
    retries: Annotated[
        int,
        typer.Option(
            help="Times that a run whose process was lost is taken up again.",
            rich_help_panel=_WORK,
        ),
    ] = 2
    device: Device = "auto"

    def choose(self) -> Engine:
        """Return the engine; raises UserError for a device that is not there."""
        if self.engine == "local":
            from bmnas.lab.jobs.engine import run_local
            from bmnas.machine.runtime import Runtime

            Runtime.choose(self.device)
            return run_local
        # Now, so that it is told before anything is done where Ray is missing.
        import ray  # noqa: F401

        from bmnas.lab.jobs.on_ray import run_on_ray

        return run_on_ray

    def run(
        self, jobs: Sequence[Job], folder: Path, *, option: str, resume: bool
    ) -> list[JobRecord]:
        """Do ``jobs`` below ``folder``, which ``option`` names, and return how each ended."""
        from bmnas.lab.jobs.folder import run_jobs
        from bmnas.machine.progress import Bars

        return run_jobs(
            jobs,
            folder,
            workers(self.workers, self.retries, folder),
            self.choose(),
            device=self.device,
            option=option,
            resume=resume,
            progress=Bars(),
        )


def workers(count: int, retries: int, folder: Path) -> Workers:
    """Return the processes that do runs below ``folder``: Python with this module."""
    from bmnas.lab.jobs.engine import Workers

    command = (sys.executable, "-m", "bmnas.cli.workers")
    return Workers(command, count, retries, folder.resolve() / ".scratch")


def _end_with_parent() -> None:
    # Not sys.stdin, whose lock Python wants for itself when it ends.
    while os.read(0, 1):
        pass
    os._exit(1)


def _main() -> None:
    from bmnas.cli.export import export_run
    from bmnas.lab.jobs.job import do_order
    from bmnas.machine.files import read_json

    # Ctrl-C ends it without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        do_order(read_json(Path(sys.argv[1])), export_run)
    except UserError as error:
        print(one_line(error), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _main()
