"""Which way to fuse is best over several tasks: ranks, and one way against the first."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bmnas.report.comparison import ComparisonRow, format_spread
from bmnas.report.tables import TextTable, shown


def mean_ranks(rows: Sequence[ComparisonRow]) -> dict[str, dict[str, float]]:
    """Return the ranks of each row's name by task, 1 for the best mean score; equals share ranks.

    Rows that more tasks have come first, of these the one with the lowest mean rank.
    """
    ranks: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.score is not None:
            scores = [r.score.mean for r in rows if r.task == row.task and r.score is not None]
            better = sum(score > row.score.mean for score in scores)
            rank = better + (1 + scores.count(row.score.mean)) / 2
            ranks.setdefault(row.name, {})[row.task] = rank
    return dict(sorted(ranks.items(), key=lambda item: (-len(item[1]), fmean(item[1].values()))))


def ranking_tables(rows: Sequence[ComparisonRow], default: str) -> list[TextTable]:
    """Return the table of mean ranks, and for each task how far ``default`` is from the first.

    It is as good where its mean is within one standard deviation of the first's: the first's own,
    or, of a single run, that of ``default``.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    ranked = tuple(
        (
            name,
            shown(fmean(own.values()), ".2f"),
            str(len(own)),
            *(shown(own.get(task), "g") for task in tasks),
        )
        for name, own in mean_ranks(rows).items()
    )
    lines = []
    for task in tasks:
        scored = {row.name: row.score for row in rows if row.task == task and row.score is not None}
        if default in scored:
            first = max(scored, key=lambda name: scored[name].mean)
            best, own = scored[first], scored[default]
            known = [s.deviation for s in (best, own) if s.deviation is not None]
            allowed = known[0] if known else 0.0
            verdict = "yes" if best.mean - own.mean <= allowed else "no"
            lines.append((task, first, verdict, *(format_spread(s, ".4f") for s in (best, own))))
    heads = ("task", "first", "within one deviation", "its score", default)
    return [
        TextTable("Mean rank over tasks", ("row", "mean rank", "tasks", *tasks), ranked),
        TextTable(f"{default} and the first", heads, tuple(lines), words=3),
    ]
