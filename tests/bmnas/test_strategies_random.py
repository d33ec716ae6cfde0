from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_problems import tiny_problem

import bmnas.strategies.candidates as module
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import Architecture
from bmnas.strategies import STRATEGIES, Outcome
from bmnas.strategies.random import search_random
from bmnas.training.metrics import Evaluation

FEATURES = ("m0.1", "m0.2", "m1.1")


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_the_best_candidate_on_validation_is_the_outcome(tmp_path: Path) -> None:
    outcome = search_random(tiny_problem(tmp_path, candidates=5))
    records = history(tmp_path)
    scores = [record["validation_score"] for record in records]
    best = scores.index(max(scores))
    assert outcome.best_epoch == best + 1
    assert outcome.validation == scores[best]
    assert outcome.genotype.to_dict()["cells"] == records[best]["cells"]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5]


def test_the_budget_is_reported_in_the_fields_of_every_strategy(tmp_path: Path) -> None:
    found: dict[str, Outcome[Architecture]] = {}
    for name, strategy in STRATEGIES.items():
        problem = tiny_problem(tmp_path / name, candidates=3, candidate_epochs=2, epochs=2)
        found[name] = strategy(problem)
    # Batches of 16: of 40 train samples 32 are seen in an epoch, of 24 validation samples 16.
    assert (found["random"].candidates, found["random"].samples_seen) == (3, 3 * 2 * 32)
    assert (found["bmnas"].candidates, found["bmnas"].samples_seen) == (1, 2 * (32 + 16))
    for outcome in found.values():
        assert isinstance(outcome.genotype, Architecture)
        assert 0 <= outcome.validation <= 1
        assert outcome.threshold is None


def planted(best: int, scores: Callable[[int], float]) -> Callable[..., Evaluation]:
    """An evaluation that says of candidate ``best`` what no other reaches."""
    count = 0

    def evaluate(*args: object) -> Evaluation:
        nonlocal count
        count += 1
        return Evaluation(0.5, 0.99 if count == best else scores(count), torch.zeros(1, 2))

    return evaluate


@pytest.mark.parametrize("best", [1, 3, 5])
def test_a_planted_best_is_found(
    tmp_path: Path, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "evaluate", planted(best, lambda count: count / 10))
    outcome = search_random(tiny_problem(tmp_path, candidates=5))
    assert (outcome.best_epoch, outcome.validation) == (best, 0.99)
    assert outcome.genotype.to_dict()["cells"] == history(tmp_path)[best - 1]["cells"]


def test_the_earliest_of_equals_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "evaluate", planted(2, lambda count: 0.99 if count == 4 else 0.1))
    assert search_random(tiny_problem(tmp_path, candidates=5)).best_epoch == 2
    assert [record["best"] for record in history(tmp_path)] == [True, True, False, False, False]


def test_the_same_seed_tries_the_same_candidates(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        search_random(tiny_problem(tmp_path / name))
    a, b = ((tmp_path / name / "history.jsonl").read_bytes() for name in "ab")
    assert a == b


def test_a_stopped_search_goes_on_with_the_next_candidate(tmp_path: Path) -> None:
    whole = search_random(tiny_problem(tmp_path / "whole", candidates=4))
    problem = tiny_problem(tmp_path / "stopped", candidates=4)
    save, saves = problem.checkpoint.save, 0

    class StoppedError(Exception):
        pass

    def stop(*args: Any) -> None:
        nonlocal saves
        save(*args)
        saves += 1
        if saves == 2:
            raise StoppedError

    problem.checkpoint.save = stop  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        search_random(problem)
    assert len(history(tmp_path / "stopped")) == 2
    again = search_random(tiny_problem(tmp_path / "stopped", candidates=4))
    assert dataclasses.replace(again, seconds=whole.seconds) == whole
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")


def test_a_multilabel_outcome_has_the_threshold_of_its_candidate(tmp_path: Path) -> None:
    outcome = search_random(tiny_problem(tmp_path, kind="multilabel"))
    record = history(tmp_path)[outcome.best_epoch - 1]
    assert outcome.threshold == record["threshold"]
    assert 0.05 <= record["threshold"] <= 0.95


def test_divergence_names_the_candidate(tmp_path: Path) -> None:
    problem = tiny_problem(tmp_path, max_lr=1e30, candidate_epochs=3)
    with pytest.raises(UserError, match=r"candidate 1: the loss is (nan|inf) in epoch"):
        search_random(problem)


def test_a_checkpoint_that_belongs_to_others_is_refused(tmp_path: Path) -> None:
    search_random(tiny_problem(tmp_path))
    Checkpoint(tmp_path / "checkpoint.pt", "another").save({}, [])
    with pytest.raises(UserError, match="belongs to other settings"):
        search_random(tiny_problem(tmp_path))
