from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import METRICS, scored, write_run
from tiny_runs import svg_texts as texts

from bmnas.machine.errors import UserError
from bmnas.report.comparison import (
    Spread,
    comparison_rows,
    comparison_tables,
    draw_comparison,
    format_spread,
    pareto_front,
)
from bmnas.report.record import load_run
from bmnas.report.tables import TextTable, print_tables

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda name="run", **parts: write_run(tmp_path / name, **parts)


def test_rows_join_seeds_and_keep_other_differences_apart(make: Make) -> None:
    folders = [
        make("a", metrics=scored(0.9), seed=3),
        make("b", metrics=scored(0.96), seed=1),
        make("c", metrics=scored(0.94), search={"cells": 2}),
        make("d", metrics=scored(0.93), strategy="random"),
        make("e", metrics=scored(0.92), task={"name": "av-digits", "source": {"split": "take"}}),
        make("f", metrics=scored(0.91), task={"name": "av-digits", "source": {"split": "speaker"}}),
    ]
    rows = comparison_rows([load_run(folder) for folder in folders])
    assert [(row.task, row.name, row.seeds) for row in rows] == [
        ("digits", "bmnas (cells 1)", (1, 3)),
        ("digits", "bmnas (cells 2)", (0,)),
        ("digits", "random", (0,)),
        ("av-digits (source.split take)", "bmnas", (0,)),
        ("av-digits (source.split speaker)", "bmnas", (0,)),
    ]
    # By hand: mean of .90 and .96, sample deviation .06 / sqrt 2.
    assert rows[0].score == Spread(pytest.approx(0.93), pytest.approx(0.06 / math.sqrt(2)))
    assert rows[1].score == Spread(0.94, None)
    assert rows[0].measures["best_unimodal"].mean == pytest.approx(0.88)
    assert rows[0].measures["torch_ms"].mean == 1.5
    assert len(comparison_tables(rows)) == 3


def test_the_same_strategy_on_two_spaces_is_two_rows(make: Make) -> None:
    folders = [make(space, strategy="random", space=space) for space in ("cells", "trees")]
    rows = comparison_rows([load_run(folder) for folder in folders])
    assert [row.name for row in rows] == ["random (space cells)", "random (space trees)"]


def test_a_run_without_measures_stays_in_the_table(make: Make) -> None:
    folders = [make("a"), make("b", metrics={}, strategy="unfinished")]
    (table,) = comparison_tables(comparison_rows([load_run(folder) for folder in folders]))
    assert [row[0] for row in table.rows] == ["bmnas", "unfinished"]


def test_a_measure_that_one_seed_lacks_is_a_dash(make: Make) -> None:
    missing = {key: value for key, value in METRICS.items() if key != "latency"}
    folders = [make("a", seed=0), make("b", seed=1, metrics=missing)]
    (row,) = comparison_rows([load_run(folder) for folder in folders])
    assert "torch_ms" not in row.measures
    assert format_spread(row.measures.get("torch_ms"), ".3g") == "–"
    assert format_spread(row.measures["fusion_parameters"], ",.0f") == "12,345 ± 0"


def test_the_same_seed_twice_is_refused(make: Make) -> None:
    folders = [make("a"), make("b")]
    with pytest.raises(UserError, match=r"b: received the configuration and seed 0 of .*a again"):
        comparison_rows([load_run(folder) for folder in folders])


def test_comparison_needs_config_and_seed(make: Make) -> None:
    bare = make("a")
    (bare / "config.json").unlink()
    with pytest.raises(UserError, match=r"expected config\.json, which is missing"):
        comparison_rows([load_run(bare)])
    with pytest.raises(UserError, match=r"config\.json: seed: received 'x', expected an integer"):
        comparison_rows([load_run(make("b", seed="x"))])


def test_pareto_front_keeps_what_nothing_beats() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.8), (2.0, 0.7), (4.0, 0.9), (2.5, 0.8)]
    assert pareto_front(points) == [(1.0, 0.5), (2.0, 0.8), (3.0, 0.9)]


def test_comparison_is_drawn_a_row_a_task(make: Make) -> None:
    zero = {**METRICS["seconds"], "search": 0}
    folders = [
        make("a", metrics=scored(0.9, parameters={"fusion": 1_000_000})),
        make("b", metrics=scored(0.8, seconds=zero), strategy="$late_$"),
        make("c", metrics={}, strategy="unfinished"),
        make("d", metrics=scored(0.7, latency={}), task={"name": "other"}),
    ]
    rows = comparison_rows([load_run(folder) for folder in folders])
    figure = draw_comparison(rows)
    shown = texts(figure)
    assert {"digits", "other", "bmnas, seed 0", "$late_$, seed 0", "not measured"} <= set(shown)
    assert figure.subfigs[0].axes[0].get_xscale() == "log"
    assert figure.subfigs[0].axes[2].get_xscale() == "linear"
    with pytest.raises(UserError, match="expected a run with a test score"):
        draw_comparison([row for row in rows if row.score is None])


@pytest.mark.parametrize("width", [60, 80, 300])
def test_no_value_is_cut_on_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    names = tuple(f"measure {n}" for n in range(8))
    values = tuple(f"0.{n}123 ± 0.{n}456" for n in range(8))
    long = "bmnas (channels 64, a name that goes on and on, preset some/where/mine.toml)"
    rows = (("random", "0", *values), (long, "0, 1, 2", *values))
    print_tables([TextTable("digits", ("strategy", "seeds", *names), rows, words=2)])
    shown = re.sub("\x1b[^m]*m", "", capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert all(shown.count(text) == n for n, texts in ((1, names), (2, values)) for text in texts)
    assert shown.count("strategy") == shown.count("random") >= 1
    assert (shown.count("strategy") == 1) == (width == 300)


def test_large_numbers_have_no_exponent() -> None:
    assert format_spread(Spread(1638.2, None), ".3g") == "1,638"
    assert format_spread(Spread(999.7, 12.34), ".3g") == "1,000 ± 12.3"
    assert format_spread(Spread(0.01234, None), ".3g") == "0.0123"
