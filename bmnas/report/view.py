"""A genotype, a run or a bundle as text, as a picture, as a page and as plain data."""

from __future__ import annotations

from html import escape
from typing import Any

from bmnas.report.front import front_parts
from bmnas.report.history import history_parts, weights_parts
from bmnas.report.importance import importance_parts
from bmnas.report.latency import latency_parts, latency_tables
from bmnas.report.page import figure_html, page
from bmnas.report.picture import architecture_part, draw_genotype
from bmnas.report.predictions import confusion_parts, confusion_tables, scatter_parts
from bmnas.report.record import Record, best_epoch
from bmnas.report.style import figure_of, printable
from bmnas.report.tables import TextTable, bundle_tables, html_tables, run_tables
from bmnas.report.text import genotype_text
from bmnas.spaces.registry import describe


def record_text(record: Record) -> str:
    """Return what stands above the tables in a terminal: facts and architecture."""
    facts = " · ".join(_facts(record))
    blocks = [facts + "\n"] if facts else []
    return "\n".join(blocks + ([genotype_text(record.genotype)] if record.genotype else []))


def record_tables(record: Record) -> list[TextTable]:
    """Return what was measured, and what the manifest of a bundle says."""
    return [
        *run_tables(record.metrics),
        *confusion_tables(record.metrics),
        *bundle_tables(record.manifest),
        *latency_tables(record.manifest),
    ]


def draw_record(record: Record) -> Any:
    """Return one matplotlib Figure of architecture, weights and curves, as far as they are.

    Raises UserError when there is nothing to draw or matplotlib is missing.
    """
    drawn = [] if record.genotype is None else [architecture_part(describe(record.genotype))]
    return figure_of(
        *drawn,
        *front_parts(record),
        *importance_parts(record),
        *confusion_parts(record),
        *scatter_parts(record),
        *weights_parts(record),
        *history_parts(record),
        *latency_parts(record.manifest),
    )


def record_page(record: Record) -> str:
    """Return a self-contained HTML page."""
    sections = []
    if record.genotype is not None:
        text = escape(genotype_text(record.genotype))
        details = f"<details><summary>As text</summary><pre>{text}</pre></details>\n"
        figure = figure_html(draw_genotype(record.genotype), "a")
        sections.append(("Architecture", figure + details))
    if parts := front_parts(record):
        sections.append(("Front", figure_html(figure_of(*parts), "e")))
    if parts := importance_parts(record):
        sections.append(("What each part is worth", figure_html(figure_of(*parts), "b")))
    if parts := [*confusion_parts(record), *scatter_parts(record)]:
        sections.append(("Predictions", figure_html(figure_of(*parts), "f")))
    if parts := latency_parts(record.manifest):
        sections.append(("Latency", figure_html(figure_of(*parts), "d")))
    if tables := record_tables(record):
        sections.append(("Measurements", html_tables(tables)))
    if parts := [*weights_parts(record), *history_parts(record)]:
        sections.append(("Search and training", figure_html(figure_of(*parts), "c")))
    return page(f"{record.kind.capitalize()} {record.path.name}", _facts(record), sections)


def record_data(record: Record) -> dict[str, Any]:
    """Return all of it for --json, as in the files."""
    genotype = None if record.genotype is None else record.genotype.to_dict()
    best = best_epoch(record.history)
    unit = "epoch" if best is None else best.unit
    data: dict[str, dict[str, Any]] = {
        "genotype": {"genotype": genotype},
        "bundle": {"manifest": dict(record.manifest)},
        "run": {
            "config": dict(record.settings),
            "genotype": genotype,
            "metrics": record.metrics.to_dict(),
            f"{unit}s": len(record.history),
            f"best_{unit}": None if best is None else best.number,
            "bundle": dict(record.manifest) or None,
        },
    }
    return {"kind": record.kind, **data[record.kind]}


def _facts(record: Record) -> list[str]:
    """Return what a run was of in a few words, or where a genotype comes from."""
    facts: dict[str, Any] = {}
    if record.kind == "run":
        config = record.config
        facts = {"task": config.task.get("name"), "strategy": config.strategy}
        facts |= {"fusion": config.fusion, "seed": config.seed, "preset": config.preset}
    elif record.kind == "genotype" and record.genotype is not None:
        facts = dict(record.genotype.provenance)
    known = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
    return [printable(f"{key}: {value}", 120) for key, value in known.items()]
