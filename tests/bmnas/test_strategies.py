"""What every search strategy keeps: one contract for all that are registered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_problems import tiny_problem
from tiny_tasks import CONFIG, tiny_task

import bmnas
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.errors import UserError
from bmnas.spaces.registry import space_named, space_of
from bmnas.strategies import STRATEGIES, ProposingStrategy, check_settings, strategy_named
from bmnas.strategies.problem import Outcome, SearchProblem

#: Settings with which a search takes a moment, by strategy.
SMALL: dict[str, dict[str, Any]] = {
    "mfas": {"sweeps": 1, "levels": 2, "kept": 2, "epochs": 2, "together": 3},
    "evolution": {"population": 4, "generations": 2, "epochs": 3, "patience": 2, "subsets": 1},
}
TRAINING = [name for name, s in STRATEGIES.items() if issubclass(s, ProposingStrategy)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmnas.strategies.surrogate.EPOCHS", 3)


def problem(folder: Path, name: str, **changes: Any) -> SearchProblem:
    own = {**SMALL.get(name, {}), **changes.pop("own", {})}
    settings = {"candidates": 3, "candidate_epochs": 2, "epochs": 2, "rerank": 1, **changes}
    return tiny_problem(folder, strategy=name, own=own, **settings)


def run(folder: Path, name: str, **changes: Any) -> Outcome[Any]:
    return strategy_named(name).search(problem(folder, name, **changes))


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    """The records of the candidates that were trained."""
    file = "rerank.jsonl" if strategy_named(name).TRAINS_SUPERNET else "history.jsonl"
    return [json.loads(line) for line in (folder / file).read_text().splitlines()]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_best_candidate_on_validation_is_the_outcome(tmp_path: Path, name: str) -> None:
    outcome = run(tmp_path, name)
    found = records(tmp_path, name)
    whole = [record for record in found if record.get("subset", 0) == 0]
    best = max(whole, key=lambda record: record["validation_score"])  # the earliest of equals
    assert outcome.validation == best["validation_score"]
    assert outcome.best_candidate == best["candidate"]
    assert [record for record in found if record["best"]][-1] == best
    space = space_of(outcome.genotype)
    assert space is space_named(strategy_named(name).SPACE)
    assert [record["candidate"] for record in found] == list(range(1, len(found) + 1))
    assert outcome.candidates == len(found)
    assert outcome.threshold is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_it_took_is_counted(tmp_path: Path, name: str) -> None:
    outcome = run(tmp_path, name)
    # Batches of 16: of 40 train samples 32 are seen in an epoch, so they are of the subset, which
    # is as large; of 24 validation samples 16.
    seen = 32 * sum(record["epochs"] for record in records(tmp_path, name))
    # The epochs of Algorithm 1, and those of the supernet as single paths; or two steps an epoch of
    # the weights, on four fifths of train, and of alpha, on the rest.
    seen += {"bmnas": 2 * (32 + 16) + 2 * 32, "mmnas": 2 * (2 * 16 + 2 * 8)}.get(name, 0)
    assert outcome.samples_seen == seen
    assert sum(cost.seconds for cost in outcome.stages.values()) <= outcome.seconds


@pytest.mark.parametrize("name", ["random", "local", "regularised"])
def test_a_budget_is_kept(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, name, candidates=5).candidates == 5


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_finds_the_same(tmp_path: Path, name: str) -> None:
    outcomes = []
    for part, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(part))
        outcomes.append(run(tmp_path / part, name, seed=seed))
    a, b, c = ((tmp_path / part / "history.jsonl").read_bytes() for part in "abc")
    assert a == b != c
    assert outcomes[0] == outcomes[1]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("name", STRATEGIES)
def test_stopped_after_any_save_it_ends_as_it_would_have(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", name)
    save, saves, stop_after = Checkpoint.save, 0, 0

    def stop(self: Checkpoint, *arguments: Any) -> None:
        nonlocal saves
        save(self, *arguments)
        saves += 1
        if saves == stop_after:
            raise StoppedError

    monkeypatch.setattr(Checkpoint, "save", stop)
    again = None
    while again is None:
        # Stopped after the first save, then after the second of the rest, and so on.
        saves, stop_after = 0, stop_after + 1
        torch.manual_seed(stop_after)
        try:
            again = run(tmp_path / "stopped", name)
        except StoppedError:
            continue
    assert stop_after > 1
    assert again == whole
    for file in ("history.jsonl", "rerank.jsonl"):
        one, other = (tmp_path / part / file for part in ("stopped", "whole"))
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", TRAINING)
def test_a_finished_search_trains_nothing_more(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, name)
    monkeypatch.setattr("bmnas.strategies.evaluator.fit_together", None)
    assert run(tmp_path, name) == first


@pytest.mark.parametrize("name", TRAINING)
def test_records_of_other_candidates_are_refused(tmp_path: Path, name: str) -> None:
    run(tmp_path, name)
    given = problem(tmp_path, name)
    found = given.checkpoint.restore({})
    found[1]["genotype"] = {**found[1]["genotype"], "length": 9}
    given.checkpoint.save({}, found)
    with pytest.raises(UserError, match="candidate 2: the checkpoint holds another one than"):
        strategy_named(name).search(given)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, name: str) -> None:
    run(tmp_path, name)
    Checkpoint(tmp_path / "checkpoint.pt", "another").save({}, [])
    with pytest.raises(UserError, match="belongs to other settings"):
        run(tmp_path, name)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_multilabel_outcome_has_the_threshold_of_its_candidate(tmp_path: Path, name: str) -> None:
    outcome = run(tmp_path, name, kind="multilabel")
    record = records(tmp_path, name)[(outcome.best_candidate or 0) - 1]
    assert outcome.threshold == record["threshold"]
    assert 0.05 <= record["threshold"] <= 0.95


@pytest.mark.parametrize("name", TRAINING)
def test_divergence_names_the_candidates(tmp_path: Path, name: str) -> None:
    rate = {"max_lr": 1e30}
    given = {"own": rate} if name in SMALL else rate
    with pytest.raises(UserError, match=r"candidates? 1.*: the loss is (nan|inf) in epoch"):
        run(tmp_path, name, candidate_epochs=3, **given)


@pytest.mark.parametrize("name", STRATEGIES)
def test_progress_comes_to_an_end(tmp_path: Path, name: str) -> None:
    class Counting:
        def __init__(self) -> None:
            self.units, self.done = 0, 0

        def stage(self, name: str, units: int) -> Any:
            import contextlib

            assert self.done == self.units
            self.units += units
            return contextlib.nullcontext(self)

        def advance(self, units: int = 1) -> None:
            self.done += units

        def message(self, text: str) -> None:
            pass

        def note(self, text: str) -> None:
            pass

    for _ in range(2):  # The second time all is known.
        shown = Counting()
        given = dataclasses.replace(problem(tmp_path, name), progress=shown)
        strategy_named(name).search(given)
        assert shown.done == shown.units > 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_test_data_is_read(tmp_path: Path, name: str) -> None:
    task = tiny_task()
    spoilt = dataclasses.replace(
        task,
        modalities=tuple(
            dataclasses.replace(m, data=_without(m.data, m.rows_of(task.samples("test"))))
            for m in task.modalities
        ),
    )
    own = {name: dataclasses.replace(CONFIG.strategies[name], **SMALL[name]) for name in SMALL}
    config = CONFIG.override("search", candidates=2, candidate_epochs=1, epochs=1)
    config = dataclasses.replace(config, strategies={**CONFIG.strategies, **own})
    found = [
        bmnas.search(data, run=tmp_path / part, config=config, strategy=name)
        for part, data in (("whole", task), ("spoilt", spoilt))
    ]
    assert found[0].genotype == found[1].genotype
    assert found[0].validation == found[1].validation


def _without(data: Any, rows: Any) -> Any:
    spoilt = np.array(data)
    spoilt[rows] = np.nan
    return spoilt


@pytest.mark.parametrize("name", ["random", "local", "regularised", "evolution"])
@pytest.mark.parametrize("space", ["cells", "mfas", "trees", "fusions"])
def test_a_strategy_may_look_in_another_space(tmp_path: Path, name: str, space: str) -> None:
    changes = {"own": {"generations": 1, "epochs": 1}} if name == "evolution" else {}
    outcome = run(tmp_path, name, space=space, candidates=2, candidate_epochs=1, **changes)
    assert space == space_of(outcome.genotype).NAME


def test_a_space_without_levels_or_supernet_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="received space trees, which has no levels"):
        run(tmp_path / "mfas", "mfas", space="trees")
    with pytest.raises(UserError, match="received space trees, which has no supernet"):
        run(tmp_path / "bmnas", "bmnas", space="trees")


@pytest.mark.parametrize(
    ("name", "space", "given", "unread"),
    [
        ("random", None, ["cells", "epochs", "rerank"], "--epochs, --rerank, which it does"),
        ("random", "trees", ["cells"], "--cells, which it does not read; leave it out"),
        ("bmnas", None, ["candidates", "epochs"], "--candidates, which"),
        ("mfas", None, ["batch_size"], r"section \[mfas\] of a preset"),
        ("evolution", None, ["channels"], r"section \[evolution\] of a preset"),
    ],
)
def test_settings_that_a_search_does_not_read_are_refused(
    name: str, space: str | None, given: list[str], unread: str
) -> None:
    with pytest.raises(UserError, match=unread) as caught:
        check_settings(name, space, given)
    assert "\n" not in str(caught.value)
    check_settings(name, space, ["length", "cache_dtype"])
