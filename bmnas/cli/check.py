"""``bmnas check``: is a task whole, before a day of computing is spent on it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from bmnas.cli.options import Data, Json
from bmnas.cli.output import print_json
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Bars
from bmnas.report.tables import print_tables
from bmnas.tasks import load_task
from bmnas.tasks.check import notes
from bmnas.tasks.left_out import LEFT_OUT, leave_out
from bmnas.tasks.sources import FileRows
from bmnas.tasks.survey import Survey, duplicates, survey
from bmnas.tasks.task import PARTS


def check(
    task: Annotated[
        str, Option(help="A name (see bmnas tasks), a task.toml file, or module:attribute.")
    ] = "digits",
    data: Data = None,
    sample: Annotated[
        int | None, Option(min=1, help="Read only so many rows of each modality, evenly spaced.")
    ] = None,
    leave_out_unusable: Annotated[
        bool,
        Option(
            "--leave-out",
            help=f"Of a public data set: add samples with a row that cannot be used to {LEFT_OUT} "
            "in its folder. Every command then leaves them out.",
        ),
    ] = False,
    out: Annotated[
        Path | None, Option(help="Draw some samples of each part to this .html, .png or .svg file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count samples and classes, read every row once, and list what cannot be used.

    All three parts are looked at, the test part too. Ends with status 2 where something is wrong
    and was not left out.

    Example: bmnas check --task digits --out digits-samples.png
    """
    from bmnas.report.contact_sheet import contact_sheet
    from bmnas.report.style import check_suffix, write_figure
    from bmnas.report.survey import (
        published_notes,
        survey_data,
        survey_page,
        survey_tables,
        unusable_lines,
    )

    if out is not None:
        check_suffix(out, ".html", ".png", ".svg")
    loaded = load_task(task, data)
    found = survey(loaded, sample, Bars())
    if as_json:
        print_json({**survey_data(found), "out": out})
    else:
        print_tables(survey_tables(found))
        for line in (*found.problems, *unusable_lines(found)):
            print(line)
    for note in (*published_notes(found), *notes(loaded, *PARTS[1:]), *duplicates(found)):
        typer.echo(f"note: {note}", err=True)
    if out is not None:
        write_figure(survey_page(found) if out.suffix == ".html" else contact_sheet(found), out)
        typer.echo(f"wrote {out}", err=True)
    if leave_out_unusable:
        _leave_out(found, data)
    _judge(found, left_out=leave_out_unusable)


def _leave_out(found: Survey, folder: Path | None) -> None:
    """Add the samples with rows that cannot be used to the list in ``folder``."""
    if folder is None or not found.task.names:
        raise UserError(
            f"--leave-out: task {found.task.name} is none of those that read a folder, see bmnas "
            "tasks: take the samples out of its files"
        )
    names = found.task.names
    reasons = {names[s]: reason for _, _, reason, samples in found.unusable() for s in samples}
    if reasons:
        path = leave_out(folder, reasons)
        typer.echo(f"note: samples added to {path}: {len(reasons)}", err=True)


def _judge(found: Survey, *, left_out: bool) -> None:
    """Raise UserError where something is wrong; rows that are ``left_out`` are settled."""
    name, count = found.task.name, len([*found.unusable()])
    remedy = "get their files again, or "
    if found.task.names:
        remedy += "leave their samples out with --leave-out"
    elif any(isinstance(m.data, FileRows) for m in found.task.modalities):
        remedy = FileRows.remedy
    else:
        remedy += "take them out"
    if found.problems:
        raise UserError(f"task {name} cannot be used: see the problems above")
    if count and not left_out:
        raise UserError(f"task {name}: rows that cannot be used: {count}, see above: {remedy}")
