"""``bmnas show``: a genotype, a run folder or a bundle, as text, picture or page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bmnas.report.record import BundleRecord, RunRecord
    from bmnas.spaces.architecture import Architecture


def show(
    file: Annotated[
        Path, typer.Argument(help="A genotype.json, a run folder, or a bundle folder.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Draw to this .svg, .png or .html file instead of printing text."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw an architecture, and what its search and training measured.

    Example: bmnas show runs/digits --out digits.html
    """
    from bmnas.report.output import check_suffix

    if out is not None:
        check_suffix(out, (".svg", ".png", ".html"))
    subject = _load(file)
    if out is not None:
        _write(subject, file, out)
        typer.echo(f"wrote {out}", err=True)
    if as_json:
        import json

        written = None if out is None else str(out)
        print(json.dumps({**_facts(subject), "path": str(file), "out": written}, indent=2))
    elif out is None:
        _print(subject)


def _load(path: Path) -> Architecture | RunRecord | BundleRecord:
    from bmnas.machine.errors import UserError
    from bmnas.report.record import load_bundle, load_run
    from bmnas.spaces.registry import load_architecture

    if not path.exists():
        raise UserError(f"{path}: does not exist; expected a genotype.json, a run or a bundle")
    if not path.is_dir():
        return load_architecture(path)
    return load_bundle(path) if (path / "manifest.json").is_file() else load_run(path)


def _write(subject: Architecture | RunRecord | BundleRecord, path: Path, out: Path) -> None:
    from bmnas.machine.errors import UserError
    from bmnas.report.output import write_output
    from bmnas.report.page import bundle_page, genotype_page, run_page
    from bmnas.report.picture import draw_genotype
    from bmnas.report.record import BundleRecord, RunRecord
    from bmnas.report.run import draw_run

    if isinstance(subject, RunRecord):
        write_output(out, run_page(subject) if out.suffix == ".html" else draw_run(subject))
    elif isinstance(subject, BundleRecord):
        if out.suffix == ".html":
            write_output(out, bundle_page(subject))
        elif subject.genotype is None:
            raise UserError(f"{path}: its manifest has no genotype to draw; choose an .html file")
        else:
            write_output(out, draw_genotype(subject.genotype))
    elif out.suffix == ".html":
        write_output(out, genotype_page(subject, path.name))
    else:
        write_output(out, draw_genotype(subject))


def _print(subject: Architecture | RunRecord | BundleRecord) -> None:
    from bmnas.report.record import BundleRecord, RunRecord
    from bmnas.report.run import run_facts
    from bmnas.report.tables import bundle_tables, print_tables, run_tables
    from bmnas.report.text import genotype_text

    if isinstance(subject, RunRecord):
        facts = run_facts(subject)
        if facts:
            print(" · ".join(facts), end="\n\n")
        tables = run_tables(subject)
        tables += bundle_tables(subject.bundle) if subject.bundle is not None else []
    else:
        tables = bundle_tables(subject) if isinstance(subject, BundleRecord) else []
    genotype = subject.genotype if isinstance(subject, RunRecord | BundleRecord) else subject
    if genotype is not None:
        print(genotype_text(genotype))
    print_tables(tables)


def _facts(subject: Architecture | RunRecord | BundleRecord) -> dict[str, Any]:
    from bmnas.report.record import BundleRecord, RunRecord, best_epoch

    if isinstance(subject, RunRecord):
        best = best_epoch(subject.history)
        return {
            "kind": "run",
            "config": dict(subject.config.data),
            "genotype": None if subject.genotype is None else subject.genotype.to_dict(),
            "metrics": dict(subject.metrics.data),
            "epochs": len(subject.history),
            "best_epoch": None if best is None else best.epoch,
            "bundle": None if subject.bundle is None else dict(subject.bundle.manifest.data),
        }
    if isinstance(subject, BundleRecord):
        return {"kind": "bundle", "manifest": dict(subject.manifest.data)}
    return {"kind": "genotype", "genotype": subject.to_dict()}
