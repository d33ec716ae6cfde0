"""Score against parameters, latency and search cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.rows import ComparisonRow, Spread
from bmnas.report.style import GREY, INK, PALETTE, Part, drawable, figure_of

_MARKERS = "osD^vP*X"

#: Costs: attribute of ComparisonRow, label of the axis.
_PARAMETERS = ("fusion_parameters", "parameters of the fusion network")
_SEARCH = ("search_seconds", "search, seconds")
_LATENCIES = (
    ("onnxruntime_ms", "latency of batch 1 in onnxruntime, ms"),
    ("torch_ms", "latency of batch 1 in torch, ms"),
)


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
    legend_rows = -(-len(rows) // _legend_columns(rows))
    return Part(10.5, 3.4 + 0.2 * legend_rows, lambda onto: _paint(onto, task, rows))


def _legend_columns(rows: Sequence[ComparisonRow]) -> int:
    longest = max(len(_label(row)) for row in rows)
    return max(1, min(len(rows) + 1, 120 // (longest + 8)))


def _label(row: ComparisonRow) -> str:
    return f"{row.name}, seed{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))}"


def _paint(onto: Any, task: str, rows: Sequence[ComparisonRow]) -> None:
    onto.suptitle(drawable(task, 100), fontsize=10, fontweight="bold")
    latency = next(
        (c for c in _LATENCIES if any(getattr(row, c[0]) for row in rows)), _LATENCIES[0]
    )
    panels = onto.subplots(1, 3, sharey=True)
    for axes, (key, label) in zip(panels, (_PARAMETERS, latency, _SEARCH), strict=True):
        _panel(axes, rows, key)
        axes.set_xlabel(label)
        axes.grid()
    metric = next((row.metric for row in rows if row.metric), "score")
    panels[0].set_ylabel(drawable(f"test {metric.replace('_', ' ')}"))
    handles = [_handle(n) for n in range(len(rows))]
    names = [drawable(_label(row), 100) for row in rows]
    if any(row.best_unimodal for row in rows):
        handles.append(_handle(None))
        names.append("best unimodal")
    onto.legend(handles, names, loc="outside lower center", ncols=_legend_columns(rows))


def _panel(axes: Any, rows: Sequence[ComparisonRow], key: str) -> None:
    points = []
    for n, row in enumerate(rows):
        cost: Spread | None = getattr(row, key)
        if cost is None or row.score is None:
            continue
        points.append((cost.mean, row.score.mean))
        axes.errorbar(
            *points[-1],
            xerr=cost.deviation,
            yerr=row.score.deviation,
            color=PALETTE[n % len(PALETTE)],
            marker=_MARKERS[n % len(_MARKERS)],
            markersize=7,
            capsize=3,
            elinewidth=1,
            zorder=4,
        )
    unimodal = [row.best_unimodal.mean for row in rows if row.best_unimodal]
    if unimodal:
        axes.axhline(max(unimodal), color=GREY, linewidth=1, linestyle="--")
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xticks([])
        return
    _scale(axes, [cost for cost, _ in points])
    front = pareto_front(points)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=INK, linewidth=0.9, zorder=2)


def _scale(axes: Any, costs: Sequence[float]) -> None:
    """Make the axis of costs logarithmic where they differ by more than a factor of five."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if min(costs) > 0 and max(costs) > 5 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    else:
        room = 0.15 * (max(costs) - min(costs)) or 0.5 * abs(max(costs)) or 1.0
        axes.set_xlim(max(0.0, min(costs) - room) if min(costs) >= 0 else None, max(costs) + room)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: _short_number(cost)))


def _short_number(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:.6g}"


def _handle(n: int | None) -> Any:
    from matplotlib.lines import Line2D

    if n is None:
        return Line2D([], [], color=GREY, linewidth=1, linestyle="--")
    colour, marker = PALETTE[n % len(PALETTE)], _MARKERS[n % len(_MARKERS)]
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6)
