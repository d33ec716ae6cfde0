"""Regret against the number of trained candidates, on a table whose best network is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bmnas.report.style import PALETTE, Part, figure_of, printable, short_ticks

#: What a search found: candidates that its seconds would train, mean regret.
Point = tuple[float, float]


def draw_regret(
    title: str, curves: Mapping[str, Sequence[float]], found: Mapping[str, Point]
) -> Any:
    """Return a matplotlib Figure of mean regrets in points, on logarithmic axes.

    ``curves`` are regrets after 1, 2, … candidates, by strategy; ``found`` are marked by name.
    Raises UserError when matplotlib is missing.
    """
    return figure_of(Part(7.5, 3.8, lambda onto: _paint(onto, title, curves, found)))


def _paint(
    onto: Any, title: str, curves: Mapping[str, Sequence[float]], found: Mapping[str, Point]
) -> None:
    onto.suptitle(printable(title, 100), fontsize=10, fontweight="bold")
    axes = onto.subplots()
    for n, (name, curve) in enumerate(curves.items()):
        axes.plot(range(1, len(curve) + 1), curve, color=PALETTE[n % len(PALETTE)], label=name)
    for n, (name, point) in enumerate(found.items(), start=len(curves)):
        style = {"color": PALETTE[n % len(PALETTE)], "marker": "oD"[n % 2], "linestyle": "none"}
        axes.plot(*point, **style, markersize=8, label=printable(name), zorder=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        short_ticks(axis, log=True)
    axes.set_xlabel("trained candidates, or as many as the same seconds would train")
    axes.set_ylabel("mean regret, points")
    axes.grid()
    onto.legend(loc="outside lower center", ncols=3)
