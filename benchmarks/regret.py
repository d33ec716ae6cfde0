"""How far the networks that searches find are from the best one of a table, as a figure.

    python -m benchmarks.regret av-digits.npz --searches search-quality.json --out regret.svg

Every strategy is replayed on the table, ten times up to 200 candidates; some take half a minute.
What strategy bmnas found, as benchmarks.search_quality wrote it, is marked by a point each.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.lab.tables import Table, load, replay, replayed_strategies
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json
from bmnas.report.style import PALETTE, Part, figure_of, printable, short_ticks, write_figure

BUDGET = 200
SEEDS = 10

#: What a search found: candidates that its seconds would train, mean regret.
Point = tuple[float, float]


def main() -> None:
    """Write the figure of a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--searches", type=Path, help="what benchmarks.search_quality wrote")
    parser.add_argument("--out", type=Path, required=True, help="the figure, such as regret.svg")
    options = parser.parse_args()
    table = load(options.table)
    found = {} if options.searches is None else read_found(options.searches, table)
    curves = {name: mean_regrets(table, name) for name in replayed_strategies()}
    write_figure(draw_regret(options.table.name, curves, found), options.out)


def mean_regrets(table: Table, strategy: str) -> list[float]:
    """Return the mean over seeds of the regret in points after each candidate."""
    curves = []
    for seed in range(SEEDS):
        asked = replay(table, strategy, seed=seed, budget=BUDGET).asked
        scores = np.array([score for _, score in asked])
        # The first of equals is what a search keeps.
        kept = [int(np.argmax(scores[: n + 1])) for n in range(len(scores))]
        curves.append([100 * table.regret(table.at(asked[n][0])) for n in kept])
    length = min(map(len, curves))
    return [float(np.mean([curve[n] for curve in curves])) for n in range(length)]


def read_found(path: Path, table: Table) -> dict[str, Point]:
    """Return what ``benchmarks.search_quality`` measured of strategy bmnas on ``table``.

    Raises UserError for another file, and for searches on another table.
    """
    report = read_json(path)
    try:
        rows = {name: row for name, row in report["rows"].items() if name.startswith("bmnas")}
        points = {
            name: (float(row["as_candidates"]), 100 * float(row["regret_mean"]))
            for name, row in rows.items()
        }
        same = report["truth"]["networks"] == len(table.genotypes)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: expected a report of benchmarks.search_quality: {error!r}"
        ) from error
    if not same:
        raise UserError(
            f"{path}: received searches on {report['truth']['networks']} networks, expected the "
            f"{len(table.genotypes)} of the table"
        )
    return points


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


if __name__ == "__main__":
    main()
