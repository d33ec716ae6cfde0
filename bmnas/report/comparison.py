"""Score against parameters, latency and search cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.page import figure_html, page
from bmnas.report.rows import ComparisonRow
from bmnas.report.style import GREY, INK, PALETTE, Part, drawable, figure_of, short_ticks
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
    names = [drawable(f"{row.name}, seed{_seeds(row)}", 100) for row in rows]
    columns = max(1, min(len(rows) + 1, 120 // (max(map(len, names)) + 8)))
    onnx = any("onnxruntime_ms" in row.measures for row in rows)
    torch = any("torch_ms" in row.measures for row in rows)
    costs = dict(_COSTS)
    del costs["torch_ms" if onnx or not torch else "onnxruntime_ms"]

    def paint(onto: Any) -> None:
        onto.suptitle(drawable(task, 100), fontsize=10, fontweight="bold")
        panels = onto.subplots(1, len(costs), sharey=True)
        for axes, (key, label) in zip(panels, costs.items(), strict=True):
            _panel(axes, rows, key, names)
            axes.set_xlabel(label)
            axes.grid()
        metric = next((row.metric for row in rows if row.metric), "score")
        panels[0].set_ylabel(drawable(f"test {metric.replace('_', ' ')}"))
        # A row may be missing in one panel and not in another. Its marker, without error bars.
        legend: dict[str, Any] = {}
        for axes in panels:
            handles, labels = axes.get_legend_handles_labels()
            markers = [getattr(handle, "lines", [handle])[0] for handle in handles]
            legend.update(zip(labels, markers, strict=True))
        shown = [name for name in (*names, "best unimodal") if name in legend]
        handles = [legend[name] for name in shown]
        onto.legend(handles, shown, loc="outside lower center", ncols=columns)

    return Part(10.5, 3.4 + 0.2 * -(-len(rows) // columns), paint)


def _seeds(row: ComparisonRow) -> str:
    return f"{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))}"


def _panel(axes: Any, rows: Sequence[ComparisonRow], key: str, names: Sequence[str]) -> None:
    points = []
    for n, row in enumerate(rows):
        cost = row.measures.get(key)
        if cost is None or row.score is None:
            continue
        points.append((cost.mean, row.score.mean))
        look: dict[str, Any] = {"color": PALETTE[n % len(PALETTE)], "label": names[n]}
        look |= {"marker": _MARKERS[n % len(_MARKERS)], "markersize": 7, "linestyle": "none"}
        errors = {"xerr": cost.deviation, "yerr": row.score.deviation}
        axes.errorbar(*points[-1], **errors, capsize=3, elinewidth=1, zorder=4, **look)
    unimodal = [
        row.measures["best_unimodal"].mean for row in rows if "best_unimodal" in row.measures
    ]
    if unimodal:
        look = {"color": GREY, "linewidth": 1, "linestyle": "--", "label": "best unimodal"}
        axes.axhline(max(unimodal), **look)
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
        return
    costs = [cost for cost, _ in points]
    log = 0 < 5 * min(costs) < max(costs)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    else:
        room = 0.15 * (max(costs) - min(costs)) or 0.5 * abs(max(costs)) or 1.0
        axes.set_xlim(max(0.0, min(costs) - room), max(costs) + room)
    short_ticks(axes.xaxis, log=log)
    front = pareto_front(points)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=INK, linewidth=0.9, zorder=2)
