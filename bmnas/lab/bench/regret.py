"""How far the networks that searches find are from the best one of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmnas.lab.bench.suite import SuiteTable
from bmnas.lab.tables import Table, load, replay
from bmnas.lab.tables.replay import replayed_strategies
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json
from bmnas.report.regret import Point

BUDGET = 200
SEEDS = 10


@dataclass(frozen=True)
class Regrets:
    """Mean regrets in points on one table.

    ``curves`` has those of each replayed strategy after 1, 2, … candidates, as far as all its
    replays went; ``found`` those of searches that trained a supernet, with their cost.
    """

    table: str
    networks: int
    best_test: float
    curves: Mapping[str, Sequence[float]]
    found: Mapping[str, Point]


def measure_regrets(wanted: SuiteTable) -> Regrets:
    """Replay every strategy on a table, ten times up to 200 candidates; some take half a minute.

    Raises UserError when a file cannot be used.
    """
    table, found = read_table(wanted)
    return Regrets(
        table=Path(wanted.file).name,
        networks=len(table.genotypes),
        best_test=float(np.mean(table.best().test)),
        curves={name: mean_regrets(table, name) for name in replayed_strategies()},
        found=found,
    )


def read_table(wanted: SuiteTable) -> tuple[Table, dict[str, Point]]:
    """Return a table, and what strategy bmnas found on it; raises UserError for a useless file."""
    table = load(Path(wanted.file))
    return table, {} if wanted.searches is None else _found(Path(wanted.searches), table)


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


def _found(path: Path, table: Table) -> dict[str, Point]:
    """Return what ``benchmarks.search_quality`` measured of strategy bmnas on ``table``."""
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
