from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from bmnas_serve import tuning
from bmnas_serve.session import Session
from bmnas_serve.tuning import Threads, open_fastest
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
    monkeypatch.setattr(tuning, "_measure", lambda session: seconds[session.threads])

    def open_session(count: int) -> Any:
        return SimpleNamespace(threads=count)

    session, threads = open_fastest(open_session)
    assert threads == Threads(chosen, seconds)
    assert session.threads == chosen  # type: ignore[attr-defined]


def test_a_bundle_is_measured_with_every_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "usable_cpus", lambda: 2)
    folder = save_bundle(tmp_path / "b")
    session, threads = open_fastest(lambda count: Session.open(folder, intra_op_threads=count))
    assert list(threads.seconds) == [1, 2]
    assert session.runner.describe().threads == threads.chosen


def test_the_choice_is_told_in_one_line():
    assert str(Threads(1, {1: 0.0005, 2: 0.0011})) == "1 thread (1: 0.50 ms, 2: 1.10 ms)"
    assert str(Threads(2, {1: 0.02, 2: 0.01})) == "2 threads (1: 20.00 ms, 2: 10.00 ms)"
