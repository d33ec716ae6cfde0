from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_problems import CPU
from tiny_tasks import CONFIG, changed, tiny_task
from torch import nn

import bmnas
import bmnas.pipeline.search
from bmnas.cli.plan import PlannedData
from bmnas.lab import planning
from bmnas.lab.planning import (
    BackboneCost,
    Plan,
    SearchCost,
    SyntheticFeatures,
    Workload,
    backbone_seconds,
    grown,
    plan_features,
    plan_task,
    search_seconds,
)
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config, load_preset
from bmnas.pipeline.presets import preset_names

CONFIG_3 = CONFIG.override("search", epochs=3, rerank=1)
WORK = Workload.of_features((8, 4), samples=100, validation=0.4, search=CONFIG_3.search)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_BUDGET", 0.05)


@pytest.mark.parametrize(("most", "asked"), [(1000, [2, 2, 100]), (5, [2, 2, 5]), (1, [1, 1])])
def test_as_many_batches_are_timed_as_the_budget_has_room_for(
    most: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, found = 0.0, []

    def run(batches: int) -> float:
        nonlocal now
        found.append(batches)
        # The first one also does what torch does once.
        now += 100.0 if len(found) == 1 else 0.01 * batches
        return now

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert grown(run, most, budget=1.001) == now
    assert found == asked


def test_features_that_are_not_there_yet() -> None:
    assert (WORK.train, WORK.validation, dict(WORK.rows)) == (60, 40, {"m": 100})
    assert dict(WORK.channels) == {"m.1": 8, "m.2": 4}
    # L = 4 positions, 12 channels, 4 bytes.
    assert WORK.bytes_of({"m": 1}) == 4 * 12 * 4
    assert WORK.cache_bytes == 100 * 4 * 12 * 4
    for samples, share, message in [
        (5, 0.2, "received 5 samples, of which 1 for validation; expected at least 2"),
        (100, 1.0, "--validation: received 100 samples, of which 100 for validation"),
        (100, -1.0, "--validation: received 100 samples, of which -100 for validation"),
        (-10, 0.2, "--samples, --validation: received -10"),
    ]:
        with pytest.raises(UserError, match=message):
            Workload.of_features((8, 4), samples, share, CONFIG.search)


def feature_channels(text: str | None, config: Config) -> list[int]:
    return PlannedData(features=text).channels(config)


def test_the_presets_of_the_paper_say_their_features() -> None:
    ntu = load_preset("ntu-1")
    assert sum(feature_channels(None, ntu)) == 7552
    assert feature_channels(" 3, 5 ", ntu) == [3, 5]
    for name in preset_names():
        if name.startswith(("ntu", "ego", "mmimdb")):
            assert len(feature_channels(None, load_preset(name))) >= 6
    with pytest.raises(UserError, match="preset digits is for no features in particular: give"):
        feature_channels(None, load_preset("digits"))
    for text in ("", "512", "512,x", "0,3", "3,-1", "3,70000", "1.5,2"):
        with pytest.raises(UserError, match=r"--features: received .*expected the channels of two"):
            feature_channels(text, ntu)


COST = SearchCost(
    {
        "search_weights": 1.0,
        "search_architecture": 2.0,
        "validation": 3.0,
        "single_networks": 0.25,
        "rerank": 0.5,
    },
    epoch=10.0,
    compile=7.0,
    screening=4.0,
)


def test_the_stages_of_a_search_by_hand() -> None:
    # Three epochs of 48 train and 32 validation samples in batches of 16, all 40 to validate;
    # two short trainings of one epoch.
    found = search_seconds(WORK, COST)
    assert found == {
        "compile": 7.0,
        "search_weights": 3 * 48 * 1.0,
        "search_architecture": 3 * 32 * 2.0,
        "validation": 3 * 40 * 3.0,
        "single_networks": 1 * 48 * 0.25,
        "rerank": 2 * 1 * 48 * 0.5,
        "screening": 4.0,
        "other": 30.0,
        "search": 7 + 144 + 192 + 360 + 12 + 48 + 4 + 30,
    }
    several = search_seconds(replace(WORK, seeds=4), COST)
    for stage in ("search_weights", "search_architecture", "validation", "other"):
        assert several[stage] == 4 * found[stage]
    # Three rivals for one place: there is nothing to judge.
    assert not {"screening", "single_networks"} & set(several)
    assert several["rerank"] == found["rerank"]
    alone = replace(WORK, search=replace(WORK.search, rerank=0))
    assert not {"rerank", "screening", "single_networks"} & set(search_seconds(alone, COST))


def test_backbones_and_extraction_by_hand() -> None:
    costs = {"m": BackboneCost(nn.Identity(), step=2.0, row=0.5)}  # type: ignore[arg-type]
    config = replace(CONFIG.unimodal, epochs=4)
    # Four epochs of three batches, scored on 40; a hundred rows.
    found = backbone_seconds(WORK, config, costs)
    assert found == {"backbones": 4 * 3 * 2.0 + 40 * 0.5, "extraction": 50.0}


def test_synthetic_features_are_as_many_as_asked_for() -> None:
    work = replace(WORK, kind="multilabel", classes=3)
    features = SyntheticFeatures(work, CPU.device)
    samples = features.samples(250)
    batch = samples.batch(torch.tensor([0, 100, 249]))
    inputs, labels = batch.inputs, batch.labels
    assert [x.shape for x in inputs] == [(3, 4, 8), (3, 4, 4)]
    assert torch.equal(inputs[0][0], inputs[0][1])
    assert not torch.equal(inputs[0][0], inputs[0][2])
    assert (labels.shape, labels.dtype) == ((3, 3), torch.float32)
    assert features.bytes == WORK.cache_bytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_planned_as_half_the_cache(dtype: str) -> None:
    work = replace(WORK, search=replace(WORK.search, cache_dtype=dtype))
    assert work.cache_bytes == WORK.cache_bytes // 2
    assert work.bytes_of({"m": 1}) == WORK.bytes_of({"m": 1}) // 2
    features = SyntheticFeatures(work, CPU.device)
    assert features.bytes == work.cache_bytes
    inputs = features.samples(10).batch(torch.arange(10)).inputs
    assert {x.dtype for x in inputs} == {torch.float32}
    assert 0.5 < float(inputs[0].std()) < 2
    assert not features.resident


def positive(values: Any) -> None:
    assert all(math.isfinite(value) and value > 0 for value in values)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_a_plan_has_the_stages_of_the_run(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bmnas.pipeline.search, "write_pictures", lambda *args: None)
    task = tiny_task(kind=kind)
    found = plan_task(task, CONFIG_3, CPU, tmp_path / "runs" / "run")
    assert list(tmp_path.iterdir()) == []
    seconds = dict(found.seconds)
    assert seconds.pop("compile") == 0
    positive(seconds.values())
    run = bmnas.search(task, run=tmp_path / "run", config=CONFIG_3)
    assert set(found.seconds) == set(run.metrics["seconds"]) - {"gpu_hours"}
    files = [np.load(f, allow_pickle=False) for f in run.run.rglob("*.npy")]
    assert found.workload.cache_bytes == sum(array.nbytes for array in files)
    assert found.seconds["total"] == pytest.approx(
        found.seconds["backbones"] + found.seconds["extraction"] + found.seconds["search"]
    )
    data = found.to_dict()
    assert json.loads(json.dumps(data)) == data


def plan_of_100(config: Config, near: Path, validation: float = 0.4, seeds: int = 1) -> Plan:
    work = Workload.of_features((8, 4), 100, validation, config.search)
    return plan_features(replace(work, seeds=seeds), CPU, near)


def test_a_plan_without_a_task(tmp_path: Path) -> None:
    found = plan_of_100(CONFIG_3, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not {"backbones", "extraction"} & set(found.seconds)
    assert found.seconds["total"] == found.seconds["search"]
    positive([found.memory, found.free])


def test_seeds_side_by_side_need_as_much_memory_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "cores", lambda: 3)
    one, four = (plan_of_100(CONFIG_3, tmp_path, seeds=s) for s in (1, 4))
    # Three at a time; the peak of this process does not shrink.
    assert four.memory >= 3 * one.memory - 3 * WORK.cache_bytes


def test_parts_smaller_than_a_batch(tmp_path: Path) -> None:
    config: Config = CONFIG_3.override("search", batch_size=64)
    found = plan_of_100(config, tmp_path, validation=0.1)
    positive(value for name, value in found.seconds.items() if name != "compile")


def test_a_plan_reads_no_test_data_and_leaves_the_network_given_as_it_is(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(18, 5), nn.ReLU(), nn.Linear(5, 4))
    task = changed(tiny_task(), 0, backbone=network, features=("1",))
    task.modalities[0].data[task.samples("test")] = np.nan
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = plan_task(task, CONFIG, CPU, tmp_path)
    assert "m0.1" in found.workload.channels
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_rows_that_samples_share_count_once() -> None:
    index = np.arange(96) // 3
    task = changed(tiny_task(), 0, index=index)
    backbones: Any = {name: nn.Module() for name in ("m0", "m1")}
    for backbone in backbones.values():
        backbone.feature_names, backbone.feature_channels = ("1",), (3,)
    work = Workload.of_task(task, backbones, CONFIG.search)
    used = task.samples("train", "validation")
    assert dict(work.rows) == {"m0": len(set(index[used].tolist())), "m1": 64}
