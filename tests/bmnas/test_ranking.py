"""Mean ranks over tasks, and whether the default is as good as the first."""

from __future__ import annotations

from bmnas.report.comparison import ComparisonRow, Spread
from bmnas.report.ranking import mean_ranks, ranking_tables


def row(task: str, name: str, mean: float | None, deviation: float | None = 0.01) -> ComparisonRow:
    measures = {} if mean is None else {"score": Spread(mean, deviation)}
    return ComparisonRow(task, name, (0, 1), "accuracy", measures)


ROWS = [
    row("a", "ours", 0.90),
    row("a", "concat", 0.905),
    row("a", "left alone", 0.5),
    row("b", "ours", 0.8, 0.03),
    row("b", "concat", 0.7),
    row("b", "gmu", 0.8),
    row("b", "unfinished", None),
    row("c", "ours", 0.6, 0.005),
    row("c", "concat", 0.5),
    row("c", "linear fused", 0.61, None),
]


def test_equals_share_ranks_and_rows_of_all_tasks_come_first() -> None:
    ranks = mean_ranks(ROWS)
    assert list(ranks) == ["ours", "concat", "linear fused", "gmu", "left alone"]
    assert ranks["ours"] == {"a": 2, "b": 1.5, "c": 2}
    assert ranks["concat"] == {"a": 1, "b": 3, "c": 3}
    assert ranks["gmu"] == {"b": 1.5}


def test_the_default_is_as_good_as_the_first_within_one_deviation() -> None:
    ranks, first = ranking_tables(ROWS, "ours")
    assert ranks.rows[0] == ("ours", "1.83", "3", "2", "1.5", "2")
    assert ranks.rows[-1] == ("left alone", "3.00", "1", "3", "–", "–")
    assert [line[:3] for line in first.rows] == [
        ("a", "concat", "yes"),
        ("b", "ours", "yes"),
        # A single run has no deviation: that of the default counts, and it is smaller.
        ("c", "linear fused", "no"),
    ]
    assert first.rows[0][3:] == ("0.9050 ± 0.0100", "0.9000 ± 0.0100")
