"""The drawings of a run folder, and the files that a search leaves in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.curves import draw_history, history_parts
from bmnas.report.picture import architecture_part
from bmnas.report.record import RunRecord, load_run
from bmnas.report.style import Part, figure_of, plain, write_figure
from bmnas.report.weights import weights_parts
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.registry import describe


def draw_run(run: RunRecord) -> Any:
    """Return one matplotlib Figure of a run: architecture, weights, curves, as far as it is.

    Raises UserError when there is nothing to draw yet or matplotlib is missing.
    """
    parts = [architecture_part(describe(run.genotype))] if run.genotype is not None else []
    parts += weights_of_run(run)
    parts += history_parts(run.history, run.training, _metric(run))
    if not parts:
        raise UserError(f"{run.path}: expected genotype.json or history.jsonl to draw")
    return figure_of(*parts)


def write_history(folder: str | Path, path: str | Path) -> None:
    """Draw the curves of the run ``folder`` to an .svg or .png file, whole or not at all."""
    run = load_run(folder)
    write_figure(draw_history(run.history, run.training, _metric(run)), Path(path))


def weights_of_run(run: RunRecord) -> list[Part]:
    """Return the drawings of the weights; none for a strategy that has no weights."""
    weighted = [epoch.weights for epoch in run.history if epoch.weights is not None]
    if not weighted:
        return []
    if isinstance(run.genotype, Genotype):
        return weights_parts(run.history, run.genotype.features, run.genotype.cells)
    # No genotype yet, so no names: the features are numbered.
    names = [f"feature.{f + 1}" for f in range(len(weighted[0].alpha[0]))]
    return weights_parts(run.history, names)


def run_facts(run: RunRecord) -> list[str]:
    """Return what the configuration says in a few words: task, strategy or fusion, seed, preset."""
    found = {
        "task": run.config.section("task").get("name"),
        **{key: run.config.data.get(key) for key in ("strategy", "fusion", "seed", "preset")},
    }
    return [f"{key}: {plain(str(value))}" for key, value in found.items() if value is not None]


def _metric(run: RunRecord) -> str:
    return run.metrics.text("metric") or "score"
