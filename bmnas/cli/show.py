"""``bmnas show`` and ``bmnas compare``: what was found and measured, as text, picture or page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from bmnas.cli.options import Json
from bmnas.cli.output import print_json
from bmnas.report.tables import markdown, print_tables


def show(
    file: Annotated[Path, Argument(help="A genotype.json, a run folder, or a bundle folder.")],
    out: Annotated[
        Path | None, Option(help="Draw to this .svg, .png or .html file instead of printing text.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw an architecture, and what its search and training measured.

    Example: bmnas show runs/digits --out digits.html
    """
    from bmnas.report.record import load_record
    from bmnas.report.style import check_suffix
    from bmnas.report.view import draw_record, record_data, record_page, record_tables, record_text

    if out is not None:
        check_suffix(out, ".svg", ".png", ".html")
    found = load_record(file)
    if out is not None:
        _write(out, record_page(found) if out.suffix == ".html" else draw_record(found))
    if as_json:
        print_json({**record_data(found), "path": str(file), "out": out})
    elif out is None:
        print(record_text(found))
        print_tables(record_tables(found))


def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN", help="Run folders.")],
    out: Annotated[
        Path | None, Option(help="Also write this .svg, .png, .html or .md file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs by score, parameters, latency and search cost, a table a task.

    Runs that differ only in their seed are one row: mean ± standard deviation.
    Latency is the median of batch 1. A dash: not measured in every run of the row.

    Example: bmnas compare runs/digits --out digits.svg
    """
    from bmnas.report.comparison import (
        comparison_page,
        comparison_rows,
        comparison_tables,
        draw_comparison,
    )
    from bmnas.report.record import load_run
    from bmnas.report.style import check_suffix

    if out is not None:
        check_suffix(out, ".svg", ".png", ".html", ".md")
    rows = comparison_rows([load_run(path) for path in runs])
    tables = comparison_tables(rows)
    if out is not None and out.suffix == ".md":
        _write(out, markdown(tables))
    elif out is not None:
        _write(out, comparison_page(rows) if out.suffix == ".html" else draw_comparison(rows))
    if as_json:
        print_json({"rows": [row.to_dict() for row in rows], "out": out})
    else:
        print_tables(tables)


def _write(out: Path, content: Any) -> None:
    """Write a text or a Figure, and say so."""
    from bmnas.report.style import write_figure

    write_figure(content, out)
    typer.echo(f"wrote {out}", err=True)
