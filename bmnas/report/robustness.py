"""Networks side by side while their inputs are degraded: curves, and a table of what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from bmnas.report.comparison import Spread, format_spread, spread, spread_of
from bmnas.report.metrics import RobustnessMetrics, RunMetrics
from bmnas.report.style import PALETTE, Part, figure_of, printable
from bmnas.report.tables import TextTable

_DRAWN = 8  # networks in a picture, the best on intact inputs
_AXES = {
    "noise": "noise, standard deviations of train",
    "words": "share of words left out",
}


@dataclass(frozen=True)
class Curve:
    """Scores over seeds at each strength, and without the modality; see ``RobustnessMetrics``."""

    kind: str
    strengths: tuple[float, ...]
    scores: tuple[Spread, ...]
    missing: Spread


@dataclass(frozen=True)
class RobustnessRow:
    """A way to fuse on one task: its score on intact inputs, and a curve for each modality."""

    name: str
    metric: str
    seeds: int
    score: Spread
    curves: Mapping[str, Curve]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready plain data."""
        curves = {
            modality: {
                "kind": curve.kind,
                "strengths": list(curve.strengths),
                "scores": [score._asdict() for score in curve.scores],
                "missing": curve.missing._asdict(),
            }
            for modality, curve in self.curves.items()
        }
        return {"name": self.name, "seeds": self.seeds, "modalities": curves}


def robustness_row(name: str, runs: Sequence[RunMetrics]) -> RobustnessRow | None:
    """Return the row of ``runs`` that differ in their seed; None unless all were measured alike."""
    score = spread_of([run.test_score for run in runs])
    forms = {
        tuple((m, found.kind, found.strengths) for m, found in run.robustness.items())
        for run in runs
    }
    if score is None or len(forms) > 1 or not runs[0].robustness:
        return None
    curves = {m: _curve([run.robustness[m] for run in runs]) for m in runs[0].robustness}
    return RobustnessRow(name, runs[0].metric or "score", len(runs), score, curves)


def missing_tables(robust: Mapping[str, Sequence[RobustnessRow]]) -> list[TextTable]:
    """Return a table a task: the score with everything there, and without each modality."""
    tables = []
    for task, rows in robust.items():
        modalities = list(rows[0].curves)
        columns = ("strategy", "nothing missing", *(f"without {name}" for name in modalities))
        lines = []
        for row in rows:
            scores = [row.score, *(row.curves[name].missing for name in modalities)]
            lines.append((row.name, *(format_spread(score, ".4f") for score in scores)))
        title = f"Missing modality, {task}, {_words(rows[0].metric)}"
        tables.append(TextTable(title, columns, tuple(lines)))
    return tables


def draw_robustness(task: str, rows: Sequence[RobustnessRow]) -> Any:
    """Return a matplotlib Figure: a panel a modality, the score against how it is degraded.

    Of many ``rows`` the first are drawn. Raises UserError when matplotlib is missing.
    """
    rows = rows[:_DRAWN]
    looks: list[dict[str, Any]] = [
        {"color": colour, "marker": marker, "markersize": 5, "label": printable(row.name)}
        for row, colour, marker in zip(rows, cycle(PALETTE), cycle("osD^vP*X"), strict=False)
    ]

    def paint(onto: Any) -> None:
        onto.suptitle(printable(task, 100), fontsize=10, fontweight="bold")
        panels = onto.subplots(1, len(rows[0].curves), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, rows[0].curves, strict=True):
            for row, look in zip(rows, looks, strict=True):
                _line(axes, row.curves[name], look)
            curve = rows[0].curves[name]
            ticks = [*(f"{strength:g}" for strength in curve.strengths), "missing"]
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_title(printable(name), loc="left")
            axes.set_xlabel(_AXES[curve.kind])
            axes.grid()
        panels[0].set_ylabel(f"test {_words(rows[0].metric)}")
        handles, labels = panels[0].get_legend_handles_labels()
        onto.legend(handles, labels, loc="outside lower center", ncols=4)

    return figure_of(Part(10.5, 3.2 + 0.2 * -(-len(rows) // 4), paint))


def _line(axes: Any, curve: Curve, look: Mapping[str, Any]) -> None:
    """Draw means, those of rising strength joined, that without the modality apart."""
    scores = [score.mean for score in curve.scores]
    axes.plot(range(len(scores)), scores, **look)
    axes.plot([len(scores)], [curve.missing.mean], **{**look, "label": None})


def _curve(found: Sequence[RobustnessMetrics]) -> Curve:
    scores = tuple(spread(values) for values in zip(*(one.scores for one in found), strict=True))
    missing = spread([one.missing for one in found])
    return Curve(found[0].kind, found[0].strengths, scores, missing)


def _words(metric: str) -> str:
    return metric.replace("_", " ")
