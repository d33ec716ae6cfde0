"""The regret of replayed searches in a suite's report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_tables import made_table

from bmnas.lab.bench import regret as module
from bmnas.lab.bench.regret import mean_regrets, measure_regrets
from bmnas.lab.bench.suite import SuiteTable, load_suite
from bmnas.lab.tables import replay
from bmnas.machine.errors import UserError
from bmnas.report.regret import draw_regret
from bmnas.report.style import figure_svg


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", 60)
    monkeypatch.setattr(module, "SEEDS", 2)


@pytest.fixture
def files(tmp_path: Path) -> SuiteTable:
    """A table, and what a search found on it."""
    table = made_table()
    table.save(tmp_path / "table.npz")
    rows = {
        "bmnas": {"as_candidates": 8, "regret_mean": 0.004},
        "random, 8 candidates": {"as_candidates": 8, "regret_mean": 0.01},
    }
    report = {"rows": rows, "truth": {"networks": len(table.genotypes)}}
    (tmp_path / "searches.json").write_text(json.dumps(report))
    return SuiteTable(str(tmp_path / "table.npz"), str(tmp_path / "searches.json"))


def test_a_regret_is_of_the_best_that_was_seen_so_far() -> None:
    table = made_table()
    expected = np.zeros(60)
    for seed in range(2):
        asked = replay(table, "random", seed=seed, budget=60).asked
        best, score = asked[0]
        for n, (number, seen) in enumerate(asked):
            if seen > score:
                best, score = number, seen
            expected[n] += 100 * table.regret(table.at(best)) / 2
    np.testing.assert_allclose(mean_regrets(table, "random"), expected)


def test_what_ends_by_itself_has_a_shorter_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", 10_000)
    assert len(mean_regrets(made_table(steps=1), "mfas")) < 10_000


def test_curves_and_what_was_found_are_drawn(files: SuiteTable) -> None:
    found = measure_regrets(files)
    assert found.found == {"bmnas": (8.0, 0.4)}
    assert set(map(len, found.curves.values())) == {60}
    drawn = figure_svg(draw_regret(found.table, found.curves, found.found))
    for words in ("table.npz", "random", "mfas", "bmnas", "mean regret, points"):
        assert words in drawn


def test_files_that_do_not_belong_together_are_refused(files: SuiteTable, tmp_path: Path) -> None:
    path = tmp_path / "searches.json"
    other = json.loads(path.read_text()) | {"truth": {"networks": 7}}
    path.write_text(json.dumps(other))
    with pytest.raises(UserError, match="received searches on 7 networks, expected the"):
        measure_regrets(files)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"expected a report of benchmarks\.search_quality"):
        measure_regrets(files)


def test_a_suite_names_its_tables(tmp_path: Path) -> None:
    suite = 'strategies = ["bmnas"]\n[[task]]\nname = "digits"\n[[table]]\n'
    path = tmp_path / "own.toml"
    path.write_text(suite + 'file = "t.npz"\n')
    assert load_suite(str(path)).table == (SuiteTable("t.npz"),)
    path.write_text(suite + 'searches = "s.json"\n')
    with pytest.raises(UserError, match=r"table\[0\]: expected the key 'file', which is missing"):
        load_suite(str(path))
