"""What there is to see of a genotype, a run or a bundle: as text, as a picture, as a page."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.curves import history_parts
from bmnas.report.page import Section, figure_html, page
from bmnas.report.picture import architecture_part, draw_genotype
from bmnas.report.record import BundleRecord, RunRecord, best_epoch, load_bundle, load_run
from bmnas.report.style import Part, figure_of, printable
from bmnas.report.tables import TextTable, bundle_tables, html_tables, run_tables
from bmnas.report.text import genotype_text
from bmnas.report.weights import weights_parts
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.registry import describe, load_architecture


@dataclass(frozen=True)
class View:
    """What was found at a path, empty or None where there is nothing; ``data`` goes to --json."""

    title: str
    data: dict[str, Any]
    facts: tuple[str, ...] = ()
    genotype: Architecture | None = None
    tables: tuple[TextTable, ...] = ()
    bundle: tuple[TextTable, ...] = ()
    weights: tuple[Part, ...] = ()
    curves: tuple[Part, ...] = ()

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
        parts = [*drawn, *self.weights, *self.curves]
        if not parts:
            raise UserError(
                f"{self.title}: expected a genotype or history.jsonl to draw; choose an .html file"
            )
        return figure_of(*parts)

    def page(self) -> str:
        """Return a self-contained HTML page."""
        sections: list[Section] = []
        if self.genotype is not None:
            figure = figure_html(draw_genotype(self.genotype), "a")
            text = escape(genotype_text(self.genotype))
            details = f"<details><summary>As text</summary><pre>{text}</pre></details>\n"
            sections.append(("Architecture", figure + details))
        if self.tables:
            sections.append(("Measurements", html_tables(self.tables)))
        if self.weights:
            sections.append(("Architecture weights", figure_html(figure_of(*self.weights), "w")))
        if self.curves:
            sections.append(("Curves", figure_html(figure_of(*self.curves), "c")))
        if self.bundle:
            sections.append(("Bundle", html_tables(self.bundle)))
        return page(self.title, self.facts, sections)


def view(path: Path) -> View:
    """Return what is at ``path``: a genotype file, a run folder or a bundle folder.

    Raises UserError when it is none of them or malformed.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; expected a genotype.json, a run or a bundle")
    if not path.is_dir():
        return genotype_view(load_architecture(path), path.name)
    return (
        bundle_view(load_bundle(path))
        if (path / "manifest.json").is_file()
        else run_view(load_run(path))
    )


def genotype_view(genotype: Architecture, title: str) -> View:
    """Return a genotype with what it says of where it comes from."""
    facts = _facts(genotype.provenance)
    return View(title, {"kind": "genotype", "genotype": genotype.to_dict()}, facts, genotype)


def bundle_view(bundle: BundleRecord) -> View:
    """Return a bundle: what goes in and out, reports, and the architecture."""
    data = {"kind": "bundle", "manifest": dict(bundle.data)}
    tables = tuple(bundle_tables(bundle))
    return View(f"Bundle {bundle.path.name}", data, (), bundle.genotype, bundle=tables)


def run_view(run: RunRecord) -> View:
    """Return a run: its configuration in a few words, and all that its stages have written."""
    best = best_epoch(run.history)
    unit = "epoch" if best is None else best.unit
    genotype = {} if run.genotype is None else run.genotype.to_dict()
    data = {
        "kind": "run",
        "config": dict(run.settings),
        "genotype": genotype or None,
        "metrics": run.metrics.to_dict(),
        f"{unit}s": len(run.history),
        f"best_{unit}": None if best is None else best.number,
        "bundle": None if run.bundle is None else dict(run.bundle.data),
    }
    config = run.config
    facts = {"task": config.task.get("name"), "strategy": config.strategy}
    facts |= {"fusion": config.fusion, "seed": config.seed, "preset": config.preset}
    features = () if run.genotype is None else run.genotype.features
    return View(
        f"Run {run.path.name}",
        data,
        _facts(facts),
        run.genotype,
        tuple(run_tables(run)),
        () if run.bundle is None else tuple(bundle_tables(run.bundle)),
        tuple(weights_parts(run.history, features, genotype.get("cells"))),
        tuple(history_parts(run.history, run.training, run.metrics.metric or "score")),
    )


def _facts(values: Any) -> tuple[str, ...]:
    known = {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    return tuple(printable(f"{key}: {value}", 120) for key, value in known.items())
