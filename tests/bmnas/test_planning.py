from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_problems import CPU
from tiny_tasks import CONFIG, changed, tiny_task
from tiny_words import tiny_questions
from torch import nn

import bmnas
import bmnas.pipeline.search
from bmnas.cli.plan import PlannedData
from bmnas.lab import amounts, planning
from bmnas.lab.amounts import stage_amounts
from bmnas.lab.planning import (
    Plan,
    config_within,
    multiplied,
    plan_features,
    plan_task,
)
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config, fitted_config, load_preset, preset_names
from bmnas.report.metrics import MemoryPeak
from bmnas.spaces.mmnas.space import MMnasSpace
from bmnas.strategies import rerank
from bmnas.strategies.mmnas import MMnas
from bmnas.tasks.task import Task
from bmnas.training.settings import UnimodalConfig

CONFIG_3 = CONFIG.override("search", epochs=3, rerank=1)
SMALL_CACHE = 100 * 4 * 12 * 4  # samples, L = 4 positions, 12 channels, 4 bytes


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_BUDGET", 0.05)


def plan_of_100(config: Config, near: Path, validation: int = 40, seeds: int = 1) -> Plan:
    return plan_features((8, 4), (100 - validation, validation), config, CPU, near, seeds=seeds)


@pytest.mark.parametrize("parts", [(4, 1), (0, 100), (200, -100), (-8, -2)])
def test_less_than_two_samples_of_a_part_are_told(tmp_path: Path, parts: tuple[int, int]) -> None:
    message = f"received {sum(parts)} samples, of which {parts[1]} for validation; expected"
    with pytest.raises(UserError, match=message):
        plan_features((8, 4), parts, CONFIG, CPU, tmp_path)


def feature_channels(text: str | None, config: Config) -> list[int]:
    return PlannedData(features=text).channels(config)


def test_the_presets_of_the_paper_say_their_features() -> None:
    ntu = load_preset("ntu-1")
    assert sum(feature_channels(None, ntu)) == 7552
    assert feature_channels(" 3, 5 ", ntu) == [3, 5]
    for name in preset_names():
        if name.startswith(("ntu", "ego", "mmimdb")):
            assert len(feature_channels(None, load_preset(name))) >= 6
    with pytest.raises(UserError, match="nothing says which features there are"):
        feature_channels(None, load_preset("digits-quick"))
    for text in ("", "512", "512,x", "0,3", "3,-1", "3,70000", "1.5,2"):
        with pytest.raises(UserError, match=r"--features: received .*expected the channels of two"):
            feature_channels(text, ntu)


def test_the_amounts_of_the_stages_by_hand() -> None:
    # 32 samples in each part, in batches of 20; both modalities have a row for each.
    task = tiny_task()
    config = CONFIG_3.override("search", batch_size=20)
    config = config.override("unimodal", epochs=4, batch_size=16)
    found = stage_amounts(task, config)
    assert found == {
        "backbones": 3 * 4 * 32 + 32,
        "heads": 32 + 32,
        "extraction": 2 * 64,
        "compile": 1,
        "search_weights": 3 * 20,
        "search_architecture": 3 * 20,
        "validation": 3 * 32,
        "single_path": 20,
        "rerank": 2 * 20,
        "screening": 32,
        "other": 1,
    }
    several = stage_amounts(task, config, seeds=4)
    for stage in ("search_weights", "search_architecture", "validation", "other"):
        assert several[stage] == 4 * found[stage]
    # Three rivals for one place: there is nothing to judge.
    assert several["screening"] == several["single_path"] == 0
    assert several["rerank"] == found["rerank"]
    alone = stage_amounts(task, CONFIG_3.override("search", rerank=0))
    assert alone["rerank"] == alone["screening"] == alone["single_path"] == 0


@pytest.mark.parametrize("kind", ["questions", "pairs", "regions"])
def test_a_plan_of_mmnas_has_the_stages_of_its_run(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerank, "SCREENED", 8)
    task = tiny_questions(48, images_by="windows" if kind == "regions" else None)
    if kind == "pairs":
        groups = np.arange(48) // 3 % 8
        task = replace(task, kind="matching", labels=groups, class_names=("match",))
    found = plan_task(task, CONFIG_3, CPU, tmp_path / "run", strategy="mmnas")
    assert list(tmp_path.iterdir()) == []
    run = bmnas.search(task, run=tmp_path / "run", config=CONFIG_3, strategy="mmnas")
    assert set(found.seconds) == set(run.metrics["seconds"]) - {"gpu_hours"}
    positive(value for name, value in found.seconds.items() if name != "compile")
    files = [np.load(f, allow_pickle=False) for f in run.run.rglob("*.npy")]
    assert found.cache_bytes == sum(array.nbytes for array in files if array.dtype != bool)


def test_the_amounts_of_mmnas_by_hand() -> None:
    # 32 samples in each part, of which a fifth is for alpha in half of the epochs.
    task = tiny_questions(96)
    config = CONFIG.override("search", epochs=4, rerank=2, batch_size=20)
    config = config.override("mmnas", warm_up=0.5, alpha_every=2)
    found = stage_amounts(task, config, method=MMnas)
    assert found == {
        **{
            name: stage_amounts(task, config)[name] for name in ("backbones", "heads", "extraction")
        },
        "compile": 1,
        "search_weights": 20 * (4 + 3 * 2 / 2),
        "validation": 4 * 32,
        "screening": 32,
        "rerank": 3 * 20,
        "other": 4,
    }
    pairs = stage_amounts(replace(task, kind="matching"), config, method=MMnas)
    assert pairs["validation"] == 4 * 32 * 32


def test_seconds_grow_with_the_amounts() -> None:
    spent = {"backbones": 1.0, "heads": 4.0, "extraction": 2.0, "compile": 3.0, "validation": 4.0}
    short = {"backbones": 10, "heads": 2, "extraction": 10, "compile": 1, "validation": 2}
    long = {"backbones": 20, "heads": 3, "extraction": 50, "compile": 1, "validation": 5}
    expected = {
        # Of networks that are trained, and of those that only get a head.
        "backbones": 2.0 + 6.0,
        "extraction": 10.0,
        "compile": 3.0,
        "validation": 10.0,
        "search": 13.0,
        "total": 31.0,
    }
    unplanned = {"rerank": 5.0}, {"rerank": 1}, {"rerank": 0}
    parts = (one | other for one, other in zip((spent, short, long), unplanned, strict=True))
    assert multiplied(*parts) == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_planned_as_half_the_cache(tmp_path: Path, dtype: str) -> None:
    found = plan_of_100(CONFIG_3.override("search", cache_dtype=dtype), tmp_path)
    assert found.cache_bytes == SMALL_CACHE // 2


def positive(values: Any) -> None:
    assert all(math.isfinite(value) and value > 0 for value in values)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_a_plan_has_the_stages_of_the_run(tmp_path: Path, kind: str) -> None:
    task = tiny_task(kind=kind)
    found = plan_task(task, CONFIG_3, CPU, tmp_path / "runs" / "run")
    assert list(tmp_path.iterdir()) == []
    seconds = dict(found.seconds)
    assert seconds.pop("compile") == 0
    positive(seconds.values())
    run = bmnas.search(task, run=tmp_path / "run", config=CONFIG_3)
    assert set(found.seconds) == set(run.metrics["seconds"]) - {"gpu_hours"}
    files = [np.load(f, allow_pickle=False) for f in run.run.rglob("*.npy")]
    assert found.cache_bytes == sum(array.nbytes for array in files)
    assert found.seconds["total"] == pytest.approx(
        found.seconds["backbones"] + found.seconds["extraction"] + found.seconds["search"]
    )
    data = asdict(found)
    assert json.loads(json.dumps(data)) == data


def test_a_plan_without_a_task(tmp_path: Path) -> None:
    found = plan_of_100(CONFIG_3, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert found.samples == {"train": 60, "validation": 40}
    assert found.cache_bytes == SMALL_CACHE
    assert list(found.features.values()) == [8, 4]
    assert not {"backbones", "extraction"} & set(found.seconds)
    assert found.seconds["total"] == found.seconds["search"]
    positive([found.memory["needed_bytes"], found.disk["free_bytes"]])


def test_seeds_side_by_side_need_as_much_memory_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "cores", lambda: 3)
    plans = [plan_of_100(CONFIG_3, tmp_path, seeds=s) for s in (1, 4)]
    one, four = (plan.memory["needed_bytes"] for plan in plans)
    # Three at a time; the peak of this process does not shrink.
    assert four >= 3 * one - 3 * SMALL_CACHE


def test_parts_smaller_than_a_batch(tmp_path: Path) -> None:
    config: Config = CONFIG_3.override("search", batch_size=64)
    found = plan_of_100(config, tmp_path, validation=10)
    positive(value for name, value in found.seconds.items() if name != "compile")


def test_a_plan_reads_no_test_data_and_leaves_the_network_given_as_it_is(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(18, 5), nn.ReLU(), nn.Linear(5, 4))
    task = changed(tiny_task(), 0, backbone=network, features=("1",))
    task.modalities[0].data[task.samples("test")] = np.nan
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = plan_task(task, CONFIG, CPU, tmp_path)
    assert "m0.1" in found.features
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_rows_that_samples_share_count_once() -> None:
    index = np.arange(96) // 3
    task = changed(tiny_task(), 0, index=index)
    used = task.samples("train", "validation")
    assert stage_amounts(task, CONFIG)["extraction"] == len(set(index[used].tolist())) + 64


def timed(task: Task, *, seconds: float) -> Callable[..., planning._Timing]:
    """Return what times ``task``, whose backbones take so long by default and nothing else."""
    return lambda *_: planning._Timing(
        {"backbones": seconds},
        {"backbones": stage_amounts(task, fitted_config(task))["backbones"]},
        {},
        1e9,
        MemoryPeak(),
        0,
        0,
    )


def test_a_budget_makes_all_trainings_longer_or_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(tiny_task(samples=300), preset="default")
    usual = fitted_config(task)
    monkeypatch.setattr(planning, "_timed", timed(task, seconds=60))
    half, twice = (config_within(task, minutes, CPU, tmp_path) for minutes in (0.5, 2.0))
    for section in ("unimodal", "search", "train"):
        lengths = [getattr(config, section).epochs for config in (half, usual, twice)]
        assert lengths[0] == pytest.approx(lengths[1] / 2, rel=0.1)
        assert lengths[2] == pytest.approx(lengths[1] * 2, rel=0.1)
    with pytest.raises(
        UserError, match=r"--budget: received 0.1 minutes, expected 0\.[12] or more"
    ):
        config_within(task, 0.1, CPU, tmp_path)
    for minutes in (0, -1, math.inf, math.nan):
        with pytest.raises(UserError, match="expected minutes above 0"):
            config_within(task, minutes, CPU, tmp_path)


def test_a_budget_for_mmnas_is_of_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, asked = replace(tiny_questions(backbone=None), preset="default"), []
    real = timed(task, seconds=60)
    monkeypatch.setattr(planning, "_timed", lambda *a: asked.append(a) or real(*a))
    found = config_within(task, 1.0, CPU, tmp_path, MMnasSpace)
    assert (found.train.dropout, found.search.warmup_steps, found.search.rivals) == (0.0, 50, False)
    ((timed_task, config, *_, method),) = asked
    assert (method, config) == (MMnas, fitted_config(task, space=MMnasSpace))
    assert timed_task.modality("question").backbone == "embedding"


def test_epochs_of_backbones_with_folds_by_hand() -> None:
    # A common start, three backbones on two thirds each, the last part; early stopping before.
    folds = UnimodalConfig(epochs=40, folds=3)
    assert amounts._unimodal_epochs(folds) == 4 + 3 * 36 * 2 / 3 + 16
    assert amounts._unimodal_epochs(replace(folds, early_stopping=True)) == 92 + 5 + 10 + 20 + 40
    assert amounts._unimodal_epochs(UnimodalConfig(epochs=8)) == 8
