"""benchmarks/regret.py: replayed searches on a table, and what was found, as a figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_tables import made_table

from benchmarks import regret as module
from benchmarks.regret import main, mean_regrets, read_found
from bmnas.lab.tables import load, replay
from bmnas.machine.errors import UserError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", 60)
    monkeypatch.setattr(module, "SEEDS", 2)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a table, and what a search found on it."""
    table = made_table()
    table.save(tmp_path / "table.npz")
    rows = {
        "bmnas": {"as_candidates": 8, "regret_mean": 0.004},
        "random, 8 candidates": {"as_candidates": 8, "regret_mean": 0.01},
    }
    report = {"rows": rows, "truth": {"networks": len(table.genotypes)}}
    (tmp_path / "searches.json").write_text(json.dumps(report))
    return tmp_path


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


def test_curves_and_what_was_found_are_drawn(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, searches, out = (here / name for name in ("table.npz", "searches.json", "regret.svg"))
    assert read_found(searches, load(table)) == {"bmnas": (8.0, 0.4)}
    words = ["regret", str(table), "--searches", str(searches), "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    main()
    drawn = out.read_text()
    for word in ("table.npz", "random", "mfas", "bmnas", "mean regret, points"):
        assert word in drawn


def test_files_that_do_not_belong_together_are_refused(here: Path) -> None:
    path, table = here / "searches.json", load(here / "table.npz")
    other = json.loads(path.read_text()) | {"truth": {"networks": 7}}
    path.write_text(json.dumps(other))
    with pytest.raises(UserError, match="received searches on 7 networks, expected the"):
        read_found(path, table)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"expected a report of benchmarks\.search_quality"):
        read_found(path, table)
