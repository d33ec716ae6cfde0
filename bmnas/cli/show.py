"""``bmnas show``: a genotype, a run folder or a bundle, as text, picture or page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmnas.cli.options import Json
from bmnas.cli.output import print_json


def show(
    file: Annotated[
        Path, typer.Argument(help="A genotype.json, a run folder, or a bundle folder.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Draw to this .svg, .png or .html file instead of printing text."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw an architecture, and what its search and training measured.

    Example: bmnas show runs/digits --out digits.html
    """
    from bmnas.report.style import check_suffix, write_output
    from bmnas.report.tables import print_tables
    from bmnas.report.view import view

    if out is not None:
        check_suffix(out, (".svg", ".png", ".html"))
    shown = view(file)
    if out is not None:
        write_output(out, shown.page() if out.suffix == ".html" else shown.figure())
        typer.echo(f"wrote {out}", err=True)
    if as_json:
        print_json({**shown.data, "path": str(file), "out": None if out is None else str(out)})
    elif out is None:
        print(shown.text())
        print_tables([*shown.tables, *shown.bundle])
