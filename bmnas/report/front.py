"""The front of a search: score against latency and against weights."""

from __future__ import annotations

from typing import Any

from bmnas.report.comparison import pareto_front
from bmnas.report.record import Record
from bmnas.report.style import GREY, INK, PALETTE, Part, short_ticks

_WIDTH, _HEIGHT = 10.0, 3.2


def front_parts(run: Record) -> list[Part]:
    """Return the points of the front by latency and by weights; empty where there is no front.

    Numbers are those of the run folders, a line joins what is best for its latency, or its weights.
    """
    search = run.metrics.search
    if search is None or not search.front:
        return []
    points = search.front
    metric = (run.metrics.metric or "score").replace("_", " ")
    axes_of = (
        ("latency, ms", [point.latency_ms for point in points]),
        ("weights", [float(point.parameters) for point in points]),
    )

    def paint(onto: Any) -> None:
        onto.suptitle("Front: what is served", fontsize=10, fontweight="bold")
        for axes, (name, values) in zip(onto.subplots(1, 2, sharey=True), axes_of, strict=True):
            line = pareto_front([(v, p.score) for v, p in zip(values, points, strict=True)])
            axes.step(*zip(*line, strict=True), where="post")
            for own, label in ((True, "with unimodal logits"), (False, "fusion network alone")):
                chosen = [n for n, p in enumerate(points) if p.unimodal_logits == own]
                look = {"color": PALETTE[own], "label": label, "zorder": 3, "s": 22}
                axes.scatter([values[n] for n in chosen], [points[n].score for n in chosen], **look)
            for n, point in enumerate(points, start=1):
                place = {"xytext": (3, 3), "textcoords": "offset points", "size": 7, "color": INK}
                axes.annotate(str(n), (values[n - 1], point.score), **place)
            axes.lines[0].set(color=GREY, linewidth=0.9)
            short_ticks(axes.xaxis, log=False)
            axes.set_xlabel(name)
            axes.grid()
        onto.axes[0].set_ylabel(f"{metric}, validation")
        onto.axes[0].legend(loc="lower right")

    return [Part(_WIDTH, _HEIGHT, paint)]
