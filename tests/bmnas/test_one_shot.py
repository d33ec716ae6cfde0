"""What a genotype is worth with the supernet's weights equals the supernet made to choose it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from tiny_problems import tiny_samples
from torch import Tensor

from bmnas.features.layers import Dropout
from bmnas.features.samples import Batch, FeatureSamples
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.one_shot import OneShot, SinglePath
from bmnas.spaces.cells.operations import PAPER
from bmnas.spaces.cells.supernet import Supernet
from bmnas.training.heads import head_for

FEATURES = ("m0.1", "m0.2", "m1.1")
SURE = 60.0
OTHERS = ("linear_glu.", "concat_fc.")  # operations that a step of attention has no use for
CPU = torch.device("cpu")


def supernet(steps: int = 2) -> Supernet:
    torch.manual_seed(0)
    shape = {"cells": 2, "channels": 4, "length": 4, "classes": 4, "dropout": 0.1}
    return Supernet([3, 5, 4], steps=steps, **shape)


def genotype(*steps: Step) -> Genotype:
    cells = Cell(("m0.1", "m1.1"), steps), Cell(("m0.2", "cell1"), steps)
    return Genotype(FEATURES, 4, 4, cells)


def chains() -> Iterator[Genotype]:
    for first in PAPER:
        for second in PAPER:
            yield genotype(Step(first, ("y", "x")), Step(second, ("step1", "x")))


@torch.no_grad()
def chosen(supernet: Supernet, one: Genotype) -> Supernet:
    """Return ``supernet`` with all weight on the choices of ``one``, its norms of the batch."""
    network = copy.deepcopy(supernet).double().train()
    for module in network.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    for parameter in network.architecture_parameters():
        parameter.fill_(-SURE)
    network.alpha[..., 0] = network.beta[..., 0] = SURE
    nodes = [*one.features, *(f"cell{k + 1}" for k in range(len(one.cells)))]
    sure = torch.tensor([-SURE, SURE], dtype=torch.float64)
    for k, cell in enumerate(one.cells):
        for name in cell.inputs if cell.reads_y() else cell.inputs[:1]:
            network.alpha[k, nodes.index(name)] = sure
        for m, step in enumerate(cell.steps):
            network.gamma[k, m, PAPER.index(step.op)] = SURE
            for name in step.inputs:
                place = "xy".index(name) if name in "xy" else 1 + int(name.removeprefix("step"))
                network.beta[k, m, place] = sure
    return network


@pytest.mark.parametrize("one", [*chains()], ids=lambda g: "-".join(s.op for s in g.cells[0].steps))
def test_it_is_the_loss_of_the_supernet_that_chose_so(one: Genotype) -> None:
    network, samples, objective = supernet(), tiny_samples(40), head_for("multiclass")
    before = {name: value.clone() for name, value in network.named_parameters()}
    loss = OneShot(network, samples, objective, CPU, seed=3).loss(one)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    batch = samples.batch(torch.arange(40))
    features, labels = batch.inputs, batch.labels
    with torch.no_grad():
        logits = chosen(network, one)([x.double() for x in features])
    assert loss == pytest.approx(float(objective.loss(logits, labels)), rel=1e-5)


def test_a_cell_of_one_step_is_not_merged() -> None:
    network, samples, objective = supernet(steps=1), tiny_samples(40), head_for("multiclass")
    one = genotype(Step("linear_glu", ("x", "y")))
    batch = samples.batch(torch.arange(40))
    features, labels = batch.inputs, batch.labels
    with torch.no_grad():
        logits = chosen(network, one)([x.double() for x in features])
    loss = OneShot(network, samples, objective, CPU, seed=3).loss(one)
    assert loss == pytest.approx(float(objective.loss(logits, labels)), rel=1e-5)


def test_operands_in_another_order_have_one_loss() -> None:
    one_shot = OneShot(supernet(), tiny_samples(40), head_for("multiclass"), CPU, seed=0)
    first = Step("attention", ("x", "y"))
    losses = [
        one_shot.loss(genotype(first, Step("concat_fc", names)))
        for names in (("x", "step1"), ("step1", "x"), ("y", "step1"), ("x", "y"))
    ]
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_many_samples_are_a_thousand_of_them_in_equal_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    batch = FeatureSamples.batch

    def counted(self: FeatureSamples, chosen: Tensor, device: torch.device) -> Batch:
        sizes.append(len(chosen))
        return batch(self, chosen, device)

    monkeypatch.setattr(FeatureSamples, "batch", counted)
    OneShot(supernet(), tiny_samples(1300), head_for("multiclass"), CPU, seed=0)
    assert sizes == [500, 500]
    sizes.clear()
    OneShot(supernet(), tiny_samples(601), head_for("multiclass"), CPU, seed=0)
    assert sizes == [301, 300]


def test_single_paths_come_in_turns_and_are_those_that_are_judged() -> None:
    network, samples, objective = supernet(), tiny_samples(40), head_for("multiclass")
    every = [*chains()][6:9]
    singles = SinglePath(network, every).eval()
    one_shot = OneShot(network, samples, objective, CPU, seed=3)
    batch = samples.batch(torch.arange(40))
    features, labels = batch.inputs, batch.labels
    for one in [*every, every[0]]:
        with torch.no_grad():
            loss = float(objective.loss(singles(features), labels))
        assert loss == pytest.approx(one_shot.loss(one), rel=1e-5)


def test_a_step_trains_what_its_network_reads_and_drops_as_the_supernet_does() -> None:
    network, samples = supernet(), tiny_samples(40)
    steps = (Step("attention", ("x", "y")),) * 2
    cells = Cell(("m0.1", "m1.1"), steps), Cell(("m1.1", "cell1"), steps)
    one = Genotype(FEATURES, 4, 4, cells)
    singles = SinglePath(network, [one]).train()
    batch = samples.batch(torch.arange(40))
    features, labels = batch.inputs, batch.labels
    logits = singles(features)
    assert not torch.equal(logits, singles(features))
    head_for("multiclass").loss(logits, labels).backward()
    left = {name for name, value in network.named_parameters() if value.grad is None}
    names = [name for name, _ in network.named_parameters()]
    unread = {name for name in names if name.startswith("projections.1.")}
    other = {name for name in names if any(part in name for part in OTHERS)}
    assert left == {*unread, *other, "alpha", "beta", "gamma"}
