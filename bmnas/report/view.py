"""What there is to see of a genotype, a run or a bundle: as text, as a picture, as a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.history import history_parts, weights_parts
from bmnas.report.page import figure_html, page
from bmnas.report.picture import architecture_part, draw_genotype
from bmnas.report.record import BundleRecord, RunRecord, best_epoch, load_bundle, load_run
from bmnas.report.style import Part, figure_of, printable
from bmnas.report.tables import TextTable, bundle_tables, html_tables, run_tables
from bmnas.report.text import genotype_text
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.registry import describe, load_architecture


@dataclass(frozen=True)
class View:
    """What was found at a path, empty or None where there is nothing; ``data`` goes to --json.

    ``parts`` are drawings of what a search and a training did.
    """

    title: str
    data: dict[str, Any]
    facts: tuple[str, ...] = ()
    genotype: Architecture | None = None
    tables: tuple[TextTable, ...] = ()
    parts: tuple[Part, ...] = ()

    def text(self) -> str:
        """Return what stands above the tables in a terminal: facts and architecture."""
        facts = " · ".join(self.facts)
        blocks = [facts + "\n"] if facts else []
        return "\n".join(blocks + ([genotype_text(self.genotype)] if self.genotype else []))

    def figure(self) -> Any:
        """Return one matplotlib Figure of architecture, weights and curves, as far as they are.

        Raises UserError when there is nothing to draw or matplotlib is missing.
        """
        drawn = [] if self.genotype is None else [architecture_part(describe(self.genotype))]
        if not drawn and not self.parts:
            raise UserError(
                f"{self.title}: expected a genotype or history.jsonl to draw; choose an .html file"
            )
        return figure_of(*drawn, *self.parts)

    def page(self) -> str:
        """Return a self-contained HTML page."""
        sections = []
        if self.genotype is not None:
            text = escape(genotype_text(self.genotype))
            details = f"<details><summary>As text</summary><pre>{text}</pre></details>\n"
            figure = figure_html(draw_genotype(self.genotype), "a")
            sections.append(("Architecture", figure + details))
        if self.tables:
            sections.append(("Measurements", html_tables(self.tables)))
        if self.parts:
            sections.append(("Search and training", figure_html(figure_of(*self.parts), "c")))
        return page(self.title, self.facts, sections)


def view(path: Path) -> View:
    """Return what is at ``path``: a genotype file, a run folder or a bundle folder.

    Raises UserError when it is none of them or malformed.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; expected a genotype.json, a run or a bundle")
    if not path.is_dir():
        return genotype_view(load_architecture(path), path.name)
    if (path / "manifest.json").is_file():
        return bundle_view(load_bundle(path))
    return run_view(load_run(path))


def genotype_view(genotype: Architecture, title: str) -> View:
    """Return a genotype with what it says of where it comes from."""
    facts = _facts(genotype.provenance)
    return View(title, {"kind": "genotype", "genotype": genotype.to_dict()}, facts, genotype)


def bundle_view(bundle: BundleRecord) -> View:
    """Return a bundle: what goes in and out, reports, and the architecture."""
    data = {"kind": "bundle", "manifest": dict(bundle.manifest)}
    tables = tuple(bundle_tables(bundle.manifest))
    return View(f"Bundle {bundle.path.name}", data, (), bundle.genotype, tables)


def run_view(run: RunRecord) -> View:
    """Return a run: its configuration in a few words, and all that its stages have written."""
    best = best_epoch(run.history)
    unit = "epoch" if best is None else best.unit
    data = {
        "kind": "run",
        "config": dict(run.settings),
        "genotype": run.genotype and run.genotype.to_dict(),
        "metrics": run.metrics.to_dict(),
        f"{unit}s": len(run.history),
        f"best_{unit}": None if best is None else best.number,
        "bundle": None if run.bundle is None else dict(run.bundle.manifest),
    }
    config = run.config
    facts = {"task": config.task.get("name"), "strategy": config.strategy}
    facts |= {"fusion": config.fusion, "seed": config.seed, "preset": config.preset}
    features = () if run.genotype is None else run.genotype.features
    bundled = [] if run.bundle is None else bundle_tables(run.bundle.manifest)
    curves = history_parts(run.history, run.training, run.metrics.metric or "score")
    return View(
        f"Run {run.path.name}",
        data,
        _facts(facts),
        run.genotype,
        (*run_tables(run.metrics), *bundled),
        (*weights_parts(run.history, features), *curves),
    )


def _facts(values: Mapping[str, Any]) -> tuple[str, ...]:
    known = {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    return tuple(printable(f"{key}: {value}", 120) for key, value in known.items())
