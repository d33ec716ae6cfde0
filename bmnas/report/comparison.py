"""Runs side by side: rows over seeds, their tables, and scores drawn against costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import cycle
from typing import Any, NamedTuple

from bmnas.machine.errors import UserError
from bmnas.report.metrics import RunMetrics
from bmnas.report.page import figure_html, page
from bmnas.report.record import Record, RunConfig
from bmnas.report.style import GREY, INK, PALETTE, Part, figure_of, printable, short_ticks
from bmnas.report.tables import DASH, TextTable, html_tables, leaves, shown


class Spread(NamedTuple):
    """Mean and sample standard deviation over the runs of a row; None for a single run."""

    mean: float
    deviation: float | None


class Measure(NamedTuple):
    """A column of a comparison: heading, format of its numbers, their place in metrics.json.

    ``axis`` is its label where scores are drawn against it.
    """

    heading: str
    spec: str
    place: str
    axis: str = ""


#: Scores are test scores, parameters counts, latencies the medians of batch 1 in milliseconds.
MEASURES: Mapping[str, Measure] = {
    "score": Measure("test score", ".4f", "test.score"),
    "best_unimodal": Measure("best unimodal", ".4f", "best_unimodal"),
    "fusion_parameters": Measure(
        "fusion params", ",.0f", "parameters.fusion", "parameters of the fusion network"
    ),
    "classifier_parameters": Measure("classifier params", ",.0f", "parameters.classifier"),
    "torch_ms": Measure(
        "torch ms", ".3g", "latency.torch.batch_1.median_ms", "latency of batch 1 in torch, ms"
    ),
    "onnxruntime_ms": Measure(
        "onnxruntime ms",
        ".3g",
        "latency.onnxruntime.batch_1.median_ms",
        "latency of batch 1 in onnxruntime, ms",
    ),
    "search_seconds": Measure("search s", ".1f", "seconds.search", "search, seconds"),
    "search_processor_seconds": Measure("search CPU s", ".1f", "processor_seconds.search"),
    "train_processor_seconds": Measure("train CPU s", ".1f", "processor_seconds.train"),
    "gpu_hours": Measure("GPU-hours", ".3g", "seconds.gpu_hours"),
}


@dataclass(frozen=True)
class ComparisonRow:
    """One configuration on one task; ``measures`` lacks those that not all of its runs have."""

    task: str
    name: str
    seeds: tuple[int, ...]
    metric: str | None
    measures: Mapping[str, Spread]

    @property
    def score(self) -> Spread | None:
        """The test score in ``metric``."""
        return self.measures.get("score")

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready plain data."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        spreads = {key: spread._asdict() for key, spread in data.pop("measures").items()}
        return {**dict.fromkeys(MEASURES), **spreads, **data}


def comparison_rows(runs: Sequence[Record]) -> list[ComparisonRow]:
    """Return a row for each configuration, tasks together in the order of ``runs``.

    Raises UserError when a run has no config.json or when two runs are equal in
    configuration and seed: counted twice they would feign a small deviation.
    """
    for run in runs:
        if not run.settings:
            raise UserError(f"{run.path}: expected config.json, which is missing")
    return [
        _row(task, name, group)
        for task, members in _grouped(
            runs, lambda run: leaves({"task": run.config.task}), lambda c: c.task.get("name")
        )
        for name, group in _grouped(members, _how, lambda c: c.fusion or c.strategy)
    ]


def format_spread(value: Spread | None, spec: str) -> str:
    """Return mean ± standard deviation, the mean alone for one run, a dash for None."""
    if value is None or value.deviation is None:
        return shown(value and value.mean, spec)
    return f"{shown(value.mean, spec)} ± {shown(value.deviation, spec)}"


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return mean and deviation; None when any run lacks the value, as seeds are listed."""
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else spread(known)


def spread(values: Sequence[float]) -> Spread:
    """Return mean and deviation."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def comparison_tables(rows: Sequence[ComparisonRow]) -> list[TextTable]:
    """Return one table a task with a line for each of its rows; a measure of none is left out."""
    columns = ("strategy", "seeds", *(column.heading for column in MEASURES.values()))
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        members = [row for row in rows if row.task == task]
        metrics = dict.fromkeys(row.metric.replace("_", " ") for row in members if row.metric)
        lines = [
            (
                row.name,
                ", ".join(map(str, row.seeds)),
                *(format_spread(row.measures.get(key), m.spec) for key, m in MEASURES.items()),
            )
            for row in members
        ]
        title = ", ".join([task, *metrics])
        tables.append(TextTable(title, columns, tuple(lines), words=2).measured(all_rows=True))
    return tables


def comparison_page(rows: Sequence[ComparisonRow]) -> str:
    """Return the page of a comparison: a table a task, and the plots when there are scores."""
    sections = [("Table", html_tables(comparison_tables(rows)))]
    if any(row.score for row in rows):
        sections.append(("Score and cost", figure_html(draw_comparison(rows), "p")))
    return page("Comparison of runs", ["mean ± standard deviation over seeds"], sections)


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


def _grouped(
    runs: Sequence[Record],
    settings: Callable[[Record], Mapping[str, Any]],
    named: Callable[[RunConfig], Any],
) -> Iterator[tuple[str, list[Record]]]:
    """Yield the runs of equal ``settings`` together, each group with a name of its own.

    That is what ``named`` makes of their configuration; where groups share it, followed by the
    settings in which they differ.
    """
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(str(settings(run)), []).append(run)
    found = [(named(own[0].config), settings(own[0]), own) for own in groups.values()]
    for name, values, own in found:
        alike = [others for other, others, _ in found if other == name]
        parts = [
            f"{key.partition('.')[2] or key} {values.get(key, DASH)}"
            for key in dict.fromkeys(key for others in alike for key in others)
            if len({str(others.get(key)) for others in alike}) > 1
        ]
        differences = f" ({printable(', '.join(parts), 120)})" if parts else ""
        yield printable(str(name or DASH)) + differences, own


def _how(run: Record) -> dict[str, Any]:
    """Return all settings but the task and the seeds; a run of one search does not count them."""
    kept = {k: v for k, v in run.settings.items() if k not in ("task", "seed", "backbones")}
    flat = leaves({"seeds": 1, **kept})
    return {key: value for key, value in sorted(flat.items()) if not key.endswith(".seed")}


def _row(task: str, name: str, runs: Sequence[Record]) -> ComparisonRow:
    by_seed: dict[int, Record] = {}
    for run in runs:
        seed = run.config.seed
        if seed is None:
            raise UserError(f"{run.path}/config.json: expected the key 'seed', which is missing")
        if seed in by_seed:
            raise UserError(
                f"{run.path}: received the configuration and seed {seed} of "
                f"{by_seed[seed].path} again; expected each once, leave one out"
            )
        by_seed[seed] = run
    found = [_measured(run.metrics) for run in runs]
    spreads = {key: spread_of([one.get(m.place) for one in found]) for key, m in MEASURES.items()}
    known = {key: spread for key, spread in spreads.items() if spread is not None}
    metric = next((printable(run.metrics.metric) for run in runs if run.metrics.metric), None)
    return ComparisonRow(task, name, tuple(sorted(by_seed)), metric, known)


def _measured(metrics: RunMetrics) -> dict[str, Any]:
    """Return the values of metrics.json by their place."""
    found = leaves(metrics.to_dict())
    tested = [own.test for own in metrics.alone.values() if own.test is not None]
    # Nought where there was no GPU.
    hours = metrics.seconds.get("gpu_hours") or None
    return {**found, "best_unimodal": max(tested, default=None), "seconds.gpu_hours": hours}


def _part(task: str, rows: Sequence[ComparisonRow]) -> Part:
    """Return the panels of a task, a marker a row, with what is measured of torch only if alone."""
    labels = [
        printable(
            f"{row.name}, seed{'s' * (len(row.seeds) > 1)} {', '.join(map(str, row.seeds))}", 100
        )
        for row in rows
    ]
    columns = max(1, min(len(rows) + 1, 120 // (max(map(len, labels)) + 8)))
    looks: list[dict[str, Any]] = [
        {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none", "label": label}
        for label, colour, marker in zip(labels, cycle(PALETTE), cycle("osD^vP*X"), strict=False)
    ]
    measured = {key for row in rows for key in row.measures}
    torch_alone = "torch_ms" in measured and "onnxruntime_ms" not in measured
    left_out = "onnxruntime_ms" if torch_alone else "torch_ms"
    costs = {key: m.axis for key, m in MEASURES.items() if m.axis and key != left_out}

    def paint(onto: Any) -> None:
        from matplotlib.lines import Line2D

        onto.suptitle(printable(task, 100), fontsize=10, fontweight="bold")
        handles = [Line2D([], [], **look) for look in looks]
        panels = onto.subplots(1, len(costs), sharey=True)
        unimodal = [s.mean for row in rows if (s := row.measures.get("best_unimodal"))]
        for axes, (key, label) in zip(panels, costs.items(), strict=True):
            _panel(axes, rows, key, looks)
            axes.set_xlabel(label)
            axes.grid()
            if unimodal:
                line = axes.axhline(max(unimodal), color=GREY, lw=1, ls="--", label="best unimodal")
        metric = next((row.metric for row in rows if row.metric), "score")
        panels[0].set_ylabel(f"test {metric.replace('_', ' ')}")
        handles += [line] if unimodal else []
        onto.legend(handles=handles, loc="outside lower center", ncols=columns)

    return Part(10.5, 3.4 + 0.2 * -(-len(rows) // columns), paint)


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
