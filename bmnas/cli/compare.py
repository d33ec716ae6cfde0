"""``bmnas compare``: runs side by side, score against what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmnas.cli.options import Json
from bmnas.cli.output import print_json

if TYPE_CHECKING:
    from bmnas.report.rows import ComparisonRow


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Also write this .svg, .png, .html or .md file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs by score, parameters, latency and search cost, a table a task.

    Runs that differ only in their seed are one row: mean ± standard deviation.
    Latency is the median of batch 1. A dash: not measured in every run of the row.

    Example: bmnas compare runs/digits --out digits.svg
    """
    from bmnas.report.record import load_run
    from bmnas.report.rows import comparison_rows
    from bmnas.report.style import check_suffix, write_output
    from bmnas.report.tables import comparison_tables, print_tables

    if out is not None:
        check_suffix(out, (".svg", ".png", ".html", ".md"))
    rows = comparison_rows([load_run(path) for path in runs])
    if out is not None:
        write_output(out, _drawn(rows, out.suffix))
        typer.echo(f"wrote {out}", err=True)
    if as_json:
        written = None if out is None else str(out)
        print_json({"rows": [row.to_dict() for row in rows], "out": written})
    else:
        print_tables(comparison_tables(rows))


def _drawn(rows: list[ComparisonRow], suffix: str) -> Any:
    """Return the rows in the form of a file with that suffix: a text or a Figure."""
    from bmnas.report.comparison import comparison_page, draw_comparison
    from bmnas.report.tables import comparison_tables, markdown

    if suffix == ".md":
        return markdown(comparison_tables(rows))
    return comparison_page(rows) if suffix == ".html" else draw_comparison(rows)
