"""What each part is worth: networks by hand, which read what their weights say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
from tiny_runs import METRICS, svg_texts, write_run
from tiny_tasks import CONFIG, tiny_task

import bmnas
from bmnas.pipeline.importance import permutation_importance
from bmnas.pipeline.multimodal import FUSION, MultimodalNetwork, raw_samples
from bmnas.pipeline.run_folder import Run
from bmnas.report.importance import importance_tables
from bmnas.report.metrics import Drop, ImportanceMetrics, RunMetrics
from bmnas.report.record import load_run
from bmnas.report.tables import run_tables
from bmnas.report.view import draw_record, record_page
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.tasks.task import Task
from bmnas.training.heads import head_for
from bmnas.training.settings import Weighing

CPU = torch.device("cpu")
TEST = 600


def measured(network: MultimodalNetwork, task: Task) -> ImportanceMetrics:
    samples = raw_samples(task, network, "test")
    return permutation_importance(network, samples, head_for(task.kind), CPU)


def weighed(task: Task, weights: Mapping[str, float]) -> MultimodalNetwork:
    """Return a network of all members whose sum leaves out those that have no weight."""
    network = tiny_networks.tiny_network(task, unimodal_logits=True).network
    network.weighing = Weighing(weights)
    return network


def answers(network: MultimodalNetwork, modality: str, task: Task) -> Task:
    """Return the task with labels that are what the head of ``modality`` says."""
    own = network.backbone(modality)
    with torch.no_grad():
        said = own(torch.from_numpy(own.encode(task.modality(modality).data))).argmax(1).numpy()
    return dataclasses.replace(task, labels=said)


def test_what_has_no_weight_is_worth_exactly_nothing_and_what_says_all_is_worth_all() -> None:
    network = weighed(tiny_networks.tiny_task(("vector", "vector"), test=TEST), {"m0": 1.0})
    task = answers(network, "m0", tiny_networks.tiny_task(("vector", "vector"), test=TEST))
    found = measured(network, task)
    assert found.score == 1
    assert found.samples == TEST
    assert found.modalities["m1"] == Drop(0.0, 0.0)
    # Of shuffled answers as many are right as there are pairs of equal ones.
    labels = task.labels[task.samples("test")]
    chance = (np.bincount(labels) / TEST) @ (np.bincount(labels) / TEST)
    assert 1 - found.modalities["m0"].mean == pytest.approx(chance, abs=0.03)
    assert found.modalities["m0"].deviation < 0.05
    # The fusion network is left out, and with it what it reads.
    assert found.features == {}


def test_a_feature_that_the_fusion_ignores_is_worth_nothing_and_its_modality_still_is() -> None:
    names = tuple(f"m{m}.{f}" for m in (0, 1) for f in (1, 2, 3))
    cells = (Cell(("m0.1", "m1.2"), (Step("sum", ("x", "y")),)),)
    genotype: Architecture = Genotype(names, 6, 4, cells)
    task = tiny_networks.tiny_task(("vector", "vector"), test=TEST)
    made = tiny_networks.tiny_network(task, genotype, unimodal_logits=True).network
    made.weighing = Weighing({FUSION: 1.0, "m0": 1.0, "m1": 1.0})
    with torch.no_grad():
        # Its second feature, m1.2, becomes zeros.
        for weights in made.fusion.get_submodule("projections.1").parameters():
            weights.zero_()
    samples = raw_samples(task, made, "test")
    with torch.no_grad():
        said = made(*samples.batch(torch.arange(TEST)).inputs).argmax(1)
    labels = task.labels.copy()
    labels[task.samples("test")] = said.numpy()
    found = measured(made, dataclasses.replace(task, labels=labels))
    assert found.score == 1
    assert found.features["m1.2"] == Drop(0.0, 0.0)
    assert found.features["m0.1"].mean > 0
    # Shuffled with its own logits, which the sum still has.
    assert found.modalities["m1"].mean > 0
    assert found.modalities["m0"].mean > found.features["m0.1"].mean


def test_a_training_measures_it_before_validation_is_learned(tmp_path: Path) -> None:
    task = tiny_task(samples=240)
    found = bmnas.search(task, run=tmp_path / "run", config=CONFIG)
    config = CONFIG.override("train", unimodal_logits=True, epochs=6)
    run = bmnas.train(found.run / "genotype.json", task, run=tmp_path / "run", config=config).run
    worth = Run(run).read_metrics().importance
    assert worth is not None
    assert worth.samples == len(task.samples("validation"))
    # Each modality says one of the label's two digits.
    assert all(worth.modalities[name].mean > 0.15 for name in ("m0", "m1"))
    assert RunMetrics.load(run / "metrics.json").importance == worth
    Run(run).remove_training()
    assert Run(run).read_metrics().importance is None


def test_it_is_shown_where_there_is_some(tmp_path: Path) -> None:
    drop = {"mean": 0.25, "deviation": 0.0125}
    worth = {"score": 0.96, "samples": 1234, "repeats": 5}
    worth |= {"modalities": {"left": drop}, "features": {"left.1": {**drop, "mean": -0.125}}}
    run = load_run(write_run(tmp_path / "run", metrics={**METRICS, "importance": worth}))
    table = next(t for t in run_tables(run.metrics) if t.title.startswith("What each part"))
    assert table.rows == (("left", "0.2500", "0.0125"), ("left.1", "-0.1250", "0.0125"))
    assert "accuracy lost when it is shuffled" in table.title
    assert "What each part is worth" in svg_texts(draw_record(run))
    assert "<h2>What each part is worth</h2>" in record_page(run)
    without = load_run(write_run(tmp_path / "without"))
    assert "What each part is worth" not in record_page(without)


def test_a_suite_has_the_ways_whose_runs_were_all_measured() -> None:
    def run(left: float) -> RunMetrics:
        drops = {"left": Drop(left, 0.1), "right": Drop(0.0, 0.0)}
        return RunMetrics(importance=ImportanceMetrics(0.9, 100, 5, drops))

    ways = {"search bmnas": [run(0.25), run(0.75)], "fusion gmu": [run(0.5), RunMetrics()]}
    (table,) = importance_tables({"digits": ways, "other": {"fusion gmu": [RunMetrics()]}})
    assert table.columns == ("strategy", "left", "right")
    assert table.rows == (("search bmnas", "0.5000 ± 0.3536", "0.0000 ± 0.0000"),)
