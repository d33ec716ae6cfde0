"""``bmnas init``: a task.toml for a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from bmnas.cli.output import next_command
from bmnas.machine.errors import UserError
from bmnas.machine.files import write_text


def init(
    table: Annotated[
        Path, Argument(help="A .csv, .tsv, .jsonl or .parquet file, one row a sample.")
    ],
    labels: Annotated[str | None, Option(help="The column of the labels.")] = None,
    group: Annotated[
        str | None,
        Option(help="A column that says which rows depend on each other, such as patient."),
    ] = None,
    validation: Annotated[
        Path | None, Option(help="A table of the validation part, if it has its own.")
    ] = None,
    test: Annotated[
        Path | None, Option(help="A table of the test part, if it has its own.")
    ] = None,
    out: Annotated[Path, Option(help="The file to write.")] = Path("task.toml"),
) -> None:
    """Look at a table and some of its files, and write a task.toml with comments and questions.

    Example: bmnas init data.csv --labels species
    """
    from bmnas.tasks.guess import Wishes, guessed_task

    if out.exists():
        raise UserError(f"{out}: there is such a file: give another --out, or take it away")
    if validation is not None and test is None:
        raise UserError("received --validation without --test, expected both or --test alone")
    text = guessed_task(table, out, Wishes(labels, group, validation, test))
    write_text(out, text)
    print(text, end="")
    typer.echo(
        f"wrote {out}: read its questions, then look at what it makes of your data", err=True
    )
    next_command("check", task=out, out="samples.html")


def task_of_table(table: Path) -> Path:
    """Return the task file that stands beside ``table``, written as by ``init`` where none does."""
    from bmnas.tasks.guess import Wishes, guessed_task

    if not table.is_file():
        raise UserError(
            f"{table}: there is no such table, expected a .csv, .tsv, .jsonl or .parquet file; a "
            f"task is named with --task {table}"
        )
    out = table.with_suffix(".toml")
    if out.exists():
        if out != table:  # and not a task file itself
            typer.echo(f"note: {out} says what {table} holds", err=True)
    else:
        write_text(out, guessed_task(table, out, Wishes()))
        typer.echo(f"wrote {out}: its comments say what was guessed of {table}", err=True)
    return out
