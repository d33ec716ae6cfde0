"""``bmnas compare``: runs side by side, score against what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bmnas.report.rows import ComparisonRow


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Also write this .svg, .png, .html, .md or .csv file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare runs by score, parameters, latency and search cost, a table a task.

    Runs that differ only in their seed are one row: mean ± standard deviation.
    Latency is the median of batch 1. A dash: not measured in every run of the row.

    Example: bmnas compare runs/digits --out digits.svg
    """
    from bmnas.report.output import check_suffix
    from bmnas.report.record import load_run
    from bmnas.report.rows import comparison_rows, row_to_dict
    from bmnas.report.tables import comparison_tables, print_tables

    if out is not None:
        check_suffix(out, (".svg", ".png", ".html", ".md", ".csv"))
    rows = comparison_rows([load_run(path) for path in runs])
    if out is not None:
        _write(rows, out)
        typer.echo(f"wrote {out}", err=True)
    if as_json:
        import json

        written = None if out is None else str(out)
        print(json.dumps({"rows": [row_to_dict(row) for row in rows], "out": written}, indent=2))
    else:
        print_tables(comparison_tables(rows))


def _write(rows: list[ComparisonRow], out: Path) -> None:
    from bmnas.report.comparison import draw_comparison
    from bmnas.report.output import write_output
    from bmnas.report.page import comparison_page
    from bmnas.report.tables import comparison_csv, comparison_tables, markdown

    if out.suffix == ".csv":
        write_output(out, comparison_csv(rows))
    elif out.suffix == ".md":
        write_output(out, markdown(comparison_tables(rows)))
    elif out.suffix == ".html":
        write_output(out, comparison_page(rows))
    else:
        write_output(out, draw_comparison(rows))
