from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_problems import tiny_problem

import bmnas.strategies.evaluator as module
import bmnas.strategies.rerank as module_of_rerank
from bmnas.spaces.cells.canonical import canonical
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import FUSION_MODULES
from bmnas.spaces.cells.one_shot import OneShot, SinglePath
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.strategies.bilevel import search_bilevel
from bmnas.strategies.rerank import SCREENED
from bmnas.training.metrics import Evaluation
from bmnas.training.together import Trained


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def planted(best: int) -> Any:
    count = 0

    def fit_together(*args: object, **options: object) -> list[Trained]:
        nonlocal count
        count += 1
        return [Trained(Evaluation(0.5, 0.99 if count == best else 0.3, torch.zeros(1, 2)))]

    return fit_together


def test_the_derived_genotype_competes_with_others_that_differ(tmp_path: Path) -> None:
    outcome = search_bilevel(tiny_problem(tmp_path, rerank=4))
    epochs, candidates = lines(tmp_path, "history.jsonl"), lines(tmp_path, "rerank.jsonl")
    assert candidates[0]["genotype"]["cells"] == epochs[(outcome.best_epoch or 0) - 1]["cells"]
    assert len({json.dumps(candidate["genotype"]["cells"]) for candidate in candidates}) == 5
    scores = [candidate["validation_score"] for candidate in candidates]
    assert outcome.validation == max(scores)
    assert (
        outcome.genotype.to_dict()["cells"]
        == candidates[scores.index(max(scores))]["genotype"]["cells"]
    )
    # Two epochs of 32 and 16 samples; one epoch of 32 of single paths and of five candidates.
    assert (outcome.candidates, outcome.samples_seen) == (5, 2 * (32 + 16) + 6 * 32)


@pytest.mark.parametrize("best", [1, 3, 5])
def test_a_planted_best_wins(tmp_path: Path, best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fit_together", planted(best))
    outcome = search_bilevel(tiny_problem(tmp_path, rerank=4))
    winner = lines(tmp_path, "rerank.jsonl")[best - 1]
    assert outcome.genotype.to_dict()["cells"] == winner["genotype"]["cells"]
    assert outcome.validation == 0.99


def planted_worths(worths: Sequence[float], epochs: list[int]) -> Any:
    """Have trainings end with these scores, one after the other, and note their lengths."""
    left = iter(worths)

    def fit_together(networks: object, *args: Any, **options: object) -> list[Trained]:
        epochs.append(args[-1].epochs)
        return [Trained(Evaluation(0.5, next(left), torch.zeros(1, 2)))]

    return fit_together


def test_rivals_are_compared_in_ever_longer_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Cell networks and 17 rivals, of which 7 and then 3 are trained longer."""
    first = [0.9 - n / 100 for n in range(19)]
    first[5], first[18] = 0.95, 0.94
    second = [0.1, 0.7, 0.2, 0.3, 0.4, 0.6, 0.5]
    epochs: list[int] = []
    planted = planted_worths([*first, *second, 0.2, 0.3, 0.1], epochs)
    monkeypatch.setattr(module, "fit_together", planted)
    outcome = search_bilevel(tiny_problem(tmp_path, rerank=1, rivals=True, candidate_epochs=6))
    assert epochs == 19 * [2] + 7 * [6] + 3 * [18]
    records = lines(tmp_path, "rerank.jsonl")
    seen = [record["genotype"] for record in records]
    assert seen[19:26] == [seen[n] for n in (5, 18, 0, 1, 2, 3, 4)]
    assert seen[26:] == [seen[n] for n in (18, 3, 4)]
    # Not the highest score: that of the longest trainings.
    assert outcome.validation == 0.3
    assert {**outcome.genotype.to_dict(), "provenance": None} == {**seen[3], "provenance": None}
    assert outcome.best_candidate == 28
    names = [genotype.get("name") for genotype in seen[2:19]]
    assert names == [*FUSIONS, *[None] * len(FUSION_MODULES)]


def test_candidates_are_those_that_the_supernet_thinks_most_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: dict[str, float] = {}
    loss = OneShot.loss

    def noted(self: OneShot, genotype: Genotype) -> float:
        found = judged[canonical(genotype)] = loss(self, genotype)
        return found

    monkeypatch.setattr(OneShot, "loss", noted)
    problem = tiny_problem(tmp_path, rerank=4)
    search_bilevel(problem)
    derived, *others = [
        canonical(problem.genotype(candidate["genotype"]["cells"]))
        for candidate in lines(tmp_path, "rerank.jsonl")
    ]
    assert len(judged) == SCREENED
    assert derived not in judged
    assert [judged[name] for name in others] == sorted(judged.values())[:4]


def stop_at(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the training of candidate ``count`` interrupted."""
    fit_together, calls = module.fit_together, 0

    def stop(*args: Any, **options: Any) -> list[Trained]:
        nonlocal calls
        calls += 1
        if calls == count:
            raise KeyboardInterrupt
        return fit_together(*args, **options)

    monkeypatch.setattr(module, "fit_together", stop)


@pytest.mark.parametrize("count", [1, 3])
def test_a_resumed_comparison_judges_nothing_again(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search_bilevel(tiny_problem(tmp_path / "whole", rerank=4))
    with monkeypatch.context() as patch:
        stop_at(count, patch)
        with pytest.raises(KeyboardInterrupt):
            search_bilevel(tiny_problem(tmp_path / "stopped", rerank=4))
    assert len(lines(tmp_path / "stopped", "rerank.jsonl")) == count - 1
    # On a machine that rounds otherwise the supernet would choose others.
    monkeypatch.setattr(module_of_rerank, "train_single_path", pytest.fail)
    monkeypatch.setattr(OneShot, "loss", pytest.fail)
    resumed = search_bilevel(tiny_problem(tmp_path / "stopped", rerank=4))
    assert resumed.genotype == whole.genotype
    assert resumed.stages["single_path"].samples == whole.stages["single_path"].samples
    assert lines(tmp_path / "stopped", "rerank.jsonl") == lines(tmp_path / "whole", "rerank.jsonl")


def test_the_supernet_is_trained_on_as_the_networks_that_it_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[str]] = []
    make = SinglePath.__init__

    def noted(self: SinglePath, *args: Any) -> None:
        trained.append([canonical(genotype) for genotype in args[-1]])
        make(self, *args)

    judged: dict[str, list[float]] = {}
    loss = OneShot.loss

    def judge(self: OneShot, genotype: Genotype) -> float:
        found = loss(self, genotype)
        judged.setdefault(canonical(genotype), []).append(found)
        return found

    monkeypatch.setattr(SinglePath, "__init__", noted)
    monkeypatch.setattr(OneShot, "loss", judge)
    search_bilevel(tiny_problem(tmp_path / "one", rerank=2))
    (order,) = trained
    assert sorted(order) == sorted(judged)
    # In another order than they are judged in, so that none has its turn at the end by its draw.
    assert order != list(judged)
    monkeypatch.setattr(module_of_rerank, "train_single_path", lambda *args: None)
    search_bilevel(tiny_problem(tmp_path / "two", rerank=2))
    with_training, without = zip(*judged.values(), strict=True)
    assert sum(with_training) < sum(without)


def test_many_steps_are_drawn_in_no_time(tmp_path: Path) -> None:
    # All orders of twelve steps are half a milliard.
    search_bilevel(tiny_problem(tmp_path, cells=1, steps=12, rerank=1, epochs=1))
    assert len(lines(tmp_path, "rerank.jsonl")) == 2


def test_a_large_seed_is_no_trouble(tmp_path: Path) -> None:
    problem = tiny_problem(tmp_path, rerank=1, seed=1 << 70)
    assert search_bilevel(problem).candidates == 2


def test_screened_networks_are_drawn_from_the_weights_of_the_supernet_that_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    sample_from = CellSpace.sample_from

    def noted(self: CellSpace, weights: Any, draw: Any) -> Genotype:
        drawn.append(weights)
        return sample_from(self, weights, draw)

    monkeypatch.setattr(CellSpace, "sample_from", noted)
    search_bilevel(tiny_problem(tmp_path, rerank=1, epochs=3, arch_lr=0.1))
    last = lines(tmp_path, "history.jsonl")[-1]
    for row, known in zip(drawn[0].alpha, last["alpha"], strict=True):
        assert row == pytest.approx(known)


def test_without_reranking_nothing_is_drawn(tmp_path: Path) -> None:
    outcome = search_bilevel(tiny_problem(tmp_path, rerank=0))
    assert outcome.candidates == 1
    assert not (tmp_path / "rerank.jsonl").exists()


def test_a_small_space_is_tried_as_far_as_it_goes(tmp_path: Path) -> None:
    problem = tiny_problem(tmp_path, cells=1, steps=1, rerank=60)
    names = ("m0.1", "m1.1")
    problem = dataclasses.replace(
        problem,
        train=problem.train.select(names),
        validation=problem.validation.select(names),
    )
    search_bilevel(problem)
    # One pair of inputs, four operations that read both, two of which tell x from y.
    candidates = lines(tmp_path, "rerank.jsonl")
    assert len(candidates) in (6, 7)  # the derived one may be a zero step
