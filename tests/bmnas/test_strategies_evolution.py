from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_problems import CHANNELS, tiny_problem

import bmnas.strategies.evolution as module
from bmnas.machine.errors import UserError
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.tree import text
from bmnas.strategies.evolution import search_evolution, stratified


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("subsets", [0, 1])
def test_the_best_tree_on_validation_is_the_outcome(tmp_path: Path, subsets: int) -> None:
    outcome = search_evolution(tiny_problem(tmp_path, evolution={"subsets": subsets}))
    records = history(tmp_path)
    whole = [record for record in records if record["subset"] == 0]
    best = max(whole, key=lambda record: record["validation_score"])  # the earliest of equals
    assert outcome.validation == best["validation_score"]
    assert outcome.best_epoch == best["epoch"]
    assert isinstance(outcome.genotype, FusionTree)
    assert text(outcome.genotype.tokens) == best["tree"]
    assert outcome.genotype.features == tuple(CHANNELS)
    assert (outcome.genotype.width, outcome.genotype.length) == (6, 4)
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    assert {record["generation"] for record in records} <= {0, 1, 2}
    assert not [r for r in records if r["best"] and r["subset"]]
    assert outcome.threshold is None


@pytest.mark.parametrize("subsets", [0, 1])
def test_a_tree_is_trained_once_on_the_same_data(tmp_path: Path, subsets: int) -> None:
    settings = {"subsets": subsets, "generations": 6}
    outcome = search_evolution(tiny_problem(tmp_path, evolution=settings))
    trained = [(record["tree"], record["subset"]) for record in history(tmp_path)]
    assert len(set(trained)) == len(trained) == outcome.candidates
    # Asked for more often.
    assert outcome.candidates < 4 * 7


def test_the_budget_is_what_the_candidates_took(tmp_path: Path) -> None:
    outcome = search_evolution(tiny_problem(tmp_path, evolution={"subsets": 1}))
    # Batches of 16: of 40 samples 32 are seen in an epoch; the one subset is as large.
    epochs = [record["epochs"] for record in history(tmp_path)]
    assert outcome.candidates == len(epochs)
    assert outcome.samples_seen == 32 * sum(epochs)
    assert outcome.stages["candidates"].samples == outcome.samples_seen


def test_more_subsets_than_samples_are_told(tmp_path: Path) -> None:
    settings = {"subsets": 21, "population": 44}
    with pytest.raises(UserError, match="received 21 for 40 train samples, expected at most 20"):
        search_evolution(tiny_problem(tmp_path, evolution=settings))


def test_subsets_are_smaller(tmp_path: Path) -> None:
    settings = {"subsets": 3, "population": 8, "generations": 1, "batch_size": 4}
    outcome = search_evolution(tiny_problem(tmp_path, evolution=settings))
    # 14, 13 and 13 of 40 samples: 12 of each are seen in batches of 4.
    seen = sum(r["epochs"] * (12 if r["subset"] else 40) for r in history(tmp_path))
    assert outcome.samples_seen == seen
    assert {record["subset"] for record in history(tmp_path)} == {0, 1, 2, 3}


def test_the_same_seed_finds_the_same_trees(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        search_evolution(tiny_problem(tmp_path / name, evolution={"subsets": 1}))
    a, b = ((tmp_path / name / "history.jsonl").read_bytes() for name in "ab")
    assert a == b


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_stopped_search_goes_on_as_if_it_had_not_stopped(tmp_path: Path, after: int) -> None:
    settings = {"subsets": 1}
    whole = search_evolution(tiny_problem(tmp_path / "whole", evolution=settings))
    problem = tiny_problem(tmp_path / "stopped", evolution=settings)
    save, saves = problem.checkpoint.save, 0

    def stop(*args: Any) -> None:
        nonlocal saves
        save(*args)
        saves += 1
        if saves == after:
            raise StoppedError

    problem.checkpoint.save = stop  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        search_evolution(problem)
    assert 0 < len(history(tmp_path / "stopped")) < len(history(tmp_path / "whole"))
    torch.manual_seed(after)
    again = search_evolution(tiny_problem(tmp_path / "stopped", evolution=settings))
    assert dataclasses.replace(again, seconds=whole.seconds) == whole
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")


def test_a_finished_search_trains_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search_evolution(tiny_problem(tmp_path))
    monkeypatch.setattr(module, "train_trees", None)
    assert search_evolution(tiny_problem(tmp_path)) == first


def test_records_of_other_trees_are_refused(tmp_path: Path) -> None:
    search_evolution(tiny_problem(tmp_path))
    problem = tiny_problem(tmp_path)
    records = problem.checkpoint.restore({})
    records[1]["tree"] = "add(m0.1, m1.1)"
    problem.checkpoint.save({}, records)
    with pytest.raises(UserError, match=r"candidate 2 is \S+\(.*, the checkpoint holds add\(m0"):
        search_evolution(tiny_problem(tmp_path))


def test_a_multilabel_outcome_has_the_threshold_of_its_candidate(tmp_path: Path) -> None:
    outcome = search_evolution(tiny_problem(tmp_path, kind="multilabel", evolution={"subsets": 1}))
    record = history(tmp_path)[outcome.best_epoch - 1]
    assert outcome.threshold == record["threshold"]
    assert 0.05 <= record["threshold"] <= 0.95


def test_divergence_names_the_candidates(tmp_path: Path) -> None:
    problem = tiny_problem(tmp_path, evolution={"max_lr": 1e30})
    with pytest.raises(UserError, match=r"candidates 1 to 4: the loss is (nan|inf) in epoch"):
        search_evolution(problem)


def test_subsets_are_disjoint_and_have_their_share_of_every_class() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0] * 9 + [1] * 4 + [2] * 2)[torch.randperm(15)]
    parts = stratified(labels, 3)
    assert sorted(torch.cat(parts).tolist()) == list(range(15))
    counts = torch.stack([labels[part].bincount(minlength=3) for part in parts])
    assert counts[:, 0].tolist() == [3, 3, 3]
    assert (counts.amax(0) - counts.amin(0)).tolist() == [0, 1, 1]
    assert not torch.equal(parts[0], stratified(labels, 3)[0])


def test_subsets_of_labels_that_occur_together_share_them() -> None:
    rows = torch.tensor([[1, 0], [1, 1], [0, 0]]).repeat(4, 1).float()
    parts = stratified(rows, 4)
    for part in parts:
        assert sorted(rows[part].tolist()) == [[0, 0], [1, 0], [1, 1]]
