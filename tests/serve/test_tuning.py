from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from bmnas_serve import tuning
from bmnas_serve.session import Session
from bmnas_serve.tuning import Tuning, open_fastest
from tiny_bundles import save_bundle


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 2.0, 4: 3.0, 6: 4.0}, 1),
        ({1: 1.0, 2: 0.9, 4: 0.8, 6: 0.7}, 6),
        ({1: 1.0, 2: 0.9, 4: 0.85, 6: 0.8}, 1),
        ({1: 1.0, 2: 0.5, 4: 0.45, 6: 0.4}, 2),
        ({1: 1.0, 2: 0.9, 4: 0.3, 6: 0.25}, 4),
    ],
)
def test_more_threads_have_to_be_worth_it(monkeypatch, seconds, chosen):
    monkeypatch.setattr(tuning, "usable_cpus", lambda: 6)
    monkeypatch.setattr(tuning, "_measure", lambda session, rows: seconds[session.threads])

    def open_session(count: int) -> Any:
        return SimpleNamespace(threads=count, joins=False)

    session, found = open_fastest(open_session)
    assert found == Tuning(chosen, 1, seconds, {1: seconds[chosen]})
    assert session.threads == chosen  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("run", "rows"),
    [
        (lambda rows: 0.001 * rows, 4),  # nothing is gained but handing over
        (lambda rows: 0.001 + 0.00001 * rows, 64),
        (lambda rows: 0.001 + 0.001 * rows, 32),
        (lambda rows: 0.06 * rows, 1),  # two rows would take too long to be tried
    ],
)
def test_rows_at_a_time_are_the_fewest_that_are_nearly_as_fast(monkeypatch, run, rows):
    monkeypatch.setattr(tuning, "usable_cpus", lambda: 1)
    monkeypatch.setattr(tuning, "_measure", lambda session, rows: run(rows))
    session, found = open_fastest(lambda count: SimpleNamespace(joins=True))  # type: ignore[arg-type,return-value]
    assert session.batch_rows == found.rows == rows


def test_a_bundle_is_measured_with_every_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "usable_cpus", lambda: 2)
    monkeypatch.setattr(tuning, "_SECONDS", 0.01)
    folder = save_bundle(tmp_path / "b")
    session, found = open_fastest(lambda count: Session.open(folder, intra_op_threads=count))
    assert list(found.by_threads) == [1, 2]
    assert session.runner.describe().threads == found.threads
    assert session.batch_rows == found.rows


def test_the_choice_is_told_in_one_line():
    found = Tuning(1, 4, {1: 0.0005, 2: 0.0011}, {1: 0.0005, 4: 0.0015})
    assert str(found) == (
        "1 thread (1: 0.50 ms, 2: 1.10 ms), up to 4 rows at a time (1: 0.50 ms, 4: 1.50 ms)"
    )
