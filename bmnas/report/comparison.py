"""Score against parameters, latency and search cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.page import figure_html, page
from bmnas.report.rows import ComparisonRow
from bmnas.report.style import GREY, INK, PALETTE, Part, figure_of, printable, short_ticks
from bmnas.report.tables import comparison_tables, html_tables

_MARKERS = "osD^vP*X"

#: Costs: name of the measure, label of the axis.
_COSTS = {
    "fusion_parameters": "parameters of the fusion network",
    "onnxruntime_ms": "latency of batch 1 in onnxruntime, ms",
    "torch_ms": "latency of batch 1 in torch, ms",
    "search_seconds": "search, seconds",
}


def draw_comparison(rows: Sequence[ComparisonRow]) -> Any:
    """Return a matplotlib Figure with three panels a task: score against each cost.

    Error bars are standard deviations over seeds; the line joins the Pareto front, the
    dashed line is the best unimodal network. Raises UserError when no row has a score or
    matplotlib is missing.
    """
    tasks = dict.fromkeys(row.task for row in rows if row.score is not None)
    if not tasks:
        raise UserError("comparison: expected a run with a test score; run `bmnas train` first")
    return figure_of(*(_part(task, [row for row in rows if row.task == task]) for task in tasks))


def comparison_page(rows: Sequence[ComparisonRow]) -> str:
    """Return the page of a comparison: a table a task, and the plots when there are scores."""
    sections = [("Table", html_tables(comparison_tables(rows)))]
    if any(row.score for row in rows):
        sections.append(("Score and cost", figure_html(draw_comparison(rows), "p")))
    return page("Comparison of runs", ["mean ± standard deviation over seeds"], sections)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (cost, score) points that no other beats, by rising cost.

    A point is beaten by one that costs no more and scores no less, and differs.
    """
    front: list[tuple[float, float]] = []
    for cost, score in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _part(task: str, rows: Sequence[ComparisonRow]) -> Part:
    names = [printable(f"{row.name}, seed{_seeds(row)}", 100) for row in rows]
    looks: list[dict[str, Any]] = [
        {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none"}
        for _, colour, marker in zip(rows, cycle(PALETTE), cycle(_MARKERS), strict=False)
    ]
    columns = max(1, min(len(rows) + 1, 120 // (max(map(len, names)) + 8)))
    onnx = any("onnxruntime_ms" in row.measures for row in rows)
    torch = any("torch_ms" in row.measures for row in rows)
    costs = dict(_COSTS)
    del costs["torch_ms" if onnx or not torch else "onnxruntime_ms"]

    def paint(onto: Any) -> None:
        from matplotlib.lines import Line2D

        onto.suptitle(printable(task, 100), fontsize=10, fontweight="bold")
        panels = onto.subplots(1, len(costs), sharey=True)
        handles = [Line2D([], [], **look) for look in looks]
        labels = list(names)
        unimodal = [s.mean for row in rows if (s := row.measures.get("best_unimodal"))]
        if unimodal:
            lines = [axes.axhline(max(unimodal), color=GREY, lw=1, ls="--") for axes in panels]
            handles.append(lines[0])
            labels.append("best unimodal")
        for axes, (key, label) in zip(panels, costs.items(), strict=True):
            _panel(axes, rows, key, looks)
            axes.set_xlabel(label)
            axes.grid()
        metric = next((row.metric for row in rows if row.metric), "score")
        panels[0].set_ylabel(f"test {metric.replace('_', ' ')}")
        onto.legend(handles, labels, loc="outside lower center", ncols=columns)

    return Part(10.5, 3.4 + 0.2 * -(-len(rows) // columns), paint)


def _seeds(row: ComparisonRow) -> str:
    return f"{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))}"


def _panel(
    axes: Any, rows: Sequence[ComparisonRow], key: str, looks: Sequence[dict[str, Any]]
) -> None:
    points = []
    for row, look in zip(rows, looks, strict=True):
        cost = row.measures.get(key)
        if cost is not None and row.score is not None:
            points.append((cost.mean, row.score.mean))
            errors = {"xerr": cost.deviation, "yerr": row.score.deviation}
            axes.errorbar(*points[-1], **errors, capsize=3, elinewidth=1, zorder=4, **look)
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
        return
    costs = [cost for cost, _ in points]
    log = 0 < 5 * min(costs) < max(costs)
    axes.set_xscale("log" if log else "linear")
    axes.margins(x=0.15)
    short_ticks(axes.xaxis, log=log)
    front = pareto_front(points)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=INK, linewidth=0.9, zorder=2)
