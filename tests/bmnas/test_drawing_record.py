from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import epoch, manifest, write_run

from bmnas.machine.errors import UserError
from bmnas.report.record import best_epoch, load_bundle, load_run

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda name="run", **parts: write_run(tmp_path / name, **parts)


def test_best_epoch_is_the_last_marked_one_or_else_the_earliest_best_score(make: Make) -> None:
    marked = load_run(make("a")).history
    assert best_epoch(marked).epoch == 2
    plain = [epoch(1, 0.8), epoch(2, 0.9), epoch(3, 0.9)]
    assert best_epoch(load_run(make("b", history=plain)).history).epoch == 2
    assert best_epoch(()) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2: not JSON"),
        ("[1]", r"line 2: received \[1\], expected a table"),
        (json.dumps(epoch(2, 0.9))[:-5], "line 2: not JSON"),
        ('{"epoch": true}', "line 2: epoch: received True"),
        (json.dumps(epoch(2, 0.9, best=1)), "line 2: best: received 1, expected true or false"),
        (
            json.dumps(epoch(2, math.nan)),
            "line 2: validation_score: received nan, expected from -1e.300 to 1e.300",
        ),
        ('{"epoch": 1, "train_loss": 1' + "0" * 400 + "}", "expected a number"),
        (json.dumps(epoch(2, 0.9, alpha=[[0.5]])), "line 2: alpha: received rows of lengths"),
        (json.dumps(epoch(2, 0.9, alpha=[["a", 1]])), r"line 2: alpha\[0\]\[0\]: received 'a'"),
        (
            json.dumps(epoch(2, 0.9, alpha=[])),
            "line 2: alpha: received .., expected one that is not empty",
        ),
        (
            json.dumps(epoch(2, 0.9, beta=None)),
            "line 2: alpha: expected all of alpha, beta and gamma",
        ),
        (
            json.dumps(epoch(2, 0.9, gamma=[[[1, 2, 3, 4]] * 2])),
            r"line 2: gamma: received rows of lengths \[\[4, 4\]\], expected \[\[5, 5\]\]",
        ),
        (
            json.dumps(epoch(2, 0.9, gamma=[[[1] * 5] * 2] * 2)),
            r"line 2: gamma: received rows of lengths .*, expected \[\[5, 5\]\]",
        ),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_malformed_history_gives_one_line_with_file_and_place(
    make: Make, line: str, message: str
) -> None:
    run = make(history=f"{json.dumps(epoch(1, 0.8))}\n{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        load_run(run)
    assert str(run / "history.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"test": []}, r"metrics.json: test: received \[\], expected a table"),
        (
            {"test": {"score": "x\n"}},
            r"metrics.json: test.score: received 'x.{1,2}n', expected a number",
        ),
        ({"unimodal": {"left": 3}}, "metrics.json: unimodal.left: received 3, expected a table"),
        ({"metric": 3}, "metrics.json: metric: received 3, expected a string"),
    ],
)
def test_malformed_metrics_name_the_place(
    make: Make, metrics: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_run(make(metrics=metrics))


def test_a_malformed_genotype_in_a_manifest_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest(), "genotype": {"format": 1}}))
    with pytest.raises(UserError, match=r"manifest\.json: genotype: format: received 1, expected"):
        load_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest\.json: received \[\], expected an object"):
        load_bundle(tmp_path)
