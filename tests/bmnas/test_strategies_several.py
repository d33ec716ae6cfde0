from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_problems import tiny_problem

import bmnas.strategies.bilevel as module
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.errors import UserError
from bmnas.strategies import STRATEGIES
from bmnas.strategies.problem import Outcome, SearchProblem
from bmnas.training.metrics import Evaluation


def problem(folder: Path, seeds: int = 3, **changes: Any) -> SearchProblem:
    return replace(tiny_problem(folder, **changes), seeds=seeds)


def search(found: SearchProblem) -> Outcome:
    return STRATEGIES["bmnas"].search(found)


def lines(folder: Path, name: str = "history.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed after another, which starts no processes."""
    monkeypatch.setattr(module, "cores", lambda: 1)


def test_each_seed_side_by_side_finds_what_it_finds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each process has
    together = replace(problem(tmp_path, dropout=0.3, epochs=2), seed=4)
    search(together)
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        alone = problem(tmp_path / str(number), 1, dropout=0.3, epochs=2)
        search(replace(alone, seed=4 + number))
        for line, own in zip(lines(tmp_path), lines(tmp_path / str(number)), strict=True):
            assert line["members"][number] == {"seed": 4 + number, **own}
    torch.set_num_threads(threads)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["checkpoint.pt"]


def test_one_seed_is_a_search_as_ever(tmp_path: Path) -> None:
    outcome = search(problem(tmp_path, seeds=1))
    assert (outcome.seed, outcome.members) == (None, ())
    assert "members" not in lines(tmp_path)[0]


def test_a_line_holds_every_member_and_their_mean(tmp_path: Path) -> None:
    search(problem(tmp_path, epochs=2))
    for record in lines(tmp_path):
        members = record["members"]
        assert [member["seed"] for member in members] == [0, 1, 2]
        for name in ("train_loss", "architecture_loss", "validation_loss", "validation_score"):
            values = [member[name] for member in members]
            assert record[name] == pytest.approx(sum(values) / 3)
        assert len({member["train_loss"] for member in members}) == 3
        assert all(set(member) >= {"alpha", "beta", "gamma", "cells"} for member in members)


def planted(*seeds: list[float]) -> Any:
    """Scores of the epochs of one seed after the other."""
    left = iter([score for epochs in seeds for score in epochs])

    def evaluate(*args: object) -> Evaluation:
        return Evaluation(0.5, next(left), torch.zeros(24, 4))

    return evaluate


@pytest.mark.parametrize(
    ("scores", "best", "epochs"),
    [
        (([0.1, 0.3], [0.2, 0.2], [0.3, 0.1]), 0, [2, 1, 1]),  # seeds 0 and 2 tie
        (([0.1, 0.3], [0.9, 0.2], [0.3, 0.4]), 1, [2, 1, 2]),
    ],
)
def test_each_member_keeps_its_best_epoch_and_the_best_member_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: Any,
    best: int,
    epochs: list[int],
) -> None:
    monkeypatch.setattr(module, "evaluate", planted(*scores))
    outcome = search(problem(tmp_path, epochs=2, arch_lr=5.0))
    assert [member.best_epoch for member in outcome.members] == epochs
    assert [member.seed for member in outcome.members] == [0, 1, 2]
    for number, member in enumerate(outcome.members):
        record = lines(tmp_path)[member.best_epoch - 1]["members"][number]
        assert member.genotype.to_dict()["cells"] == record["cells"]
        assert member.validation == record["validation_score"]
    winner = outcome.members[best]
    assert (outcome.seed, outcome.genotype) == (best, winner.genotype)
    assert (outcome.validation, outcome.best_epoch) == (winner.validation, winner.best_epoch)
    assert outcome.candidates == 3
    assert outcome.samples_seen == 3 * 2 * (32 + 16)


def test_short_trainings_compare_the_members_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "evaluate", planted([0.1], [0.3], [0.2]))
    outcome = search(problem(tmp_path, epochs=1, rerank=4))
    candidates = [candidate["genotype"]["cells"] for candidate in lines(tmp_path, "rerank.jsonl")]
    derived = [outcome.members[s].genotype.to_dict()["cells"] for s in (1, 2, 0)]
    distinct = [cells for n, cells in enumerate(derived) if cells not in derived[:n]]
    assert candidates[: len(distinct)] == distinct
    assert len(candidates) == outcome.candidates == 5
    seeds = {json.dumps(cells): seed for cells, seed in zip(derived, (1, 2, 0), strict=True)}
    found = json.dumps(outcome.genotype.to_dict()["cells"])
    assert outcome.seed == seeds.get(found, 1)


def test_there_are_no_more_short_trainings_than_configured(tmp_path: Path) -> None:
    search(problem(tmp_path, epochs=1, rerank=1, arch_lr=5.0))
    assert len(lines(tmp_path, "rerank.jsonl")) == 2


@pytest.mark.parametrize("after", [1, 4, 6])
def test_a_stopped_search_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = search(problem(tmp_path / "whole", epochs=2, dropout=0.3, rerank=2))
    save, saves = Checkpoint.save, 0

    class StoppedError(Exception):
        pass

    def stop(self: Checkpoint, *args: Any) -> None:
        nonlocal saves
        save(self, *args)
        saves += 1
        if saves == after:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(StoppedError):
            search(problem(tmp_path / "stopped", epochs=2, dropout=0.3, rerank=2))
    torch.manual_seed(99)
    again = search(problem(tmp_path / "stopped", epochs=2, dropout=0.3, rerank=2))
    assert again == whole
    texts = [(tmp_path / name / "history.jsonl").read_bytes() for name in ("stopped", "whole")]
    assert texts[0] == texts[1]


def test_the_short_trainings_begin_with_the_best_members_supernet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "evaluate", planted([0.1, 0.9, 0.2], [0.3, 0.2, 0.4]))
    begun: list[Any] = []
    monkeypatch.setattr(
        module,
        "rerank",
        lambda problem, found, supernet, *rest: begun.append(supernet) or found,
    )
    outcome = search(problem(tmp_path, 2, epochs=3, rerank=2, arch_lr=0.5))
    last = lines(tmp_path)[2]["members"][0]
    assert outcome.best_epoch == 2
    (supernet,) = begun
    assert asdict(supernet.architecture_weights())["alpha"] == last["alpha"]


def test_a_multilabel_search_keeps_the_threshold_of_the_best_member(tmp_path: Path) -> None:
    outcome = search(problem(tmp_path, kind="multilabel", epochs=2))
    assert outcome.seed is not None
    member = outcome.members[outcome.seed]
    record = lines(tmp_path)[member.best_epoch - 1]["members"][outcome.seed]
    assert outcome.threshold == member.threshold == record["threshold"]


def test_it_learns_what_needs_both_modalities(tmp_path: Path) -> None:
    outcome = search(problem(tmp_path, epochs=30, max_lr=0.01, dropout=0.0))
    assert min(member.validation for member in outcome.members) > 0.7


def test_divergence_names_the_seed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search, seed 0: the loss is (nan|inf) in epoch 1"):
        search(problem(tmp_path, max_lr=1e30))
    assert lines(tmp_path) == []
