"""An operation of one's own, in this file alone: searched, trained, exported, drawn.

Product: the elementwise product of x and y, with a weight for each channel.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bmnas_export import export_bundle
from tiny_problems import tiny_samples
from tiny_tasks import CONFIG, tiny_task
from torch import Tensor, nn

import bmnas
from bmnas.machine.errors import UserError
from bmnas.report.history import weights_parts
from bmnas.report.picture import draw_genotype
from bmnas.report.record import load_run
from bmnas.report.style import figure_of, write_figure
from bmnas.report.text import genotype_text
from bmnas.spaces.cells.canonical import canonical
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.one_shot import OneShot
from bmnas.spaces.cells.operations import OPERATIONS, PAPER, Operation, register
from bmnas.spaces.cells.space import CellSpace
from bmnas.training.heads import head_for


class Product(nn.Module):
    def __init__(self, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y * self.weight


PRODUCT = Operation("product", "Product", "{0} * {1}", Product, symmetric=True)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(PRODUCT)
    yield
    del OPERATIONS["product"]


def cell(*names: str) -> Genotype:
    features = ("m0.1", "m0.2", "m1.1")
    cells = (Cell(("m0.1", "m1.1"), (Step("product", names), Step("sum", ("step1", "x")))),)
    return Genotype(features, 4, 4, cells)


def test_an_operation_of_its_own_goes_all_the_way(tmp_path: Path) -> None:
    task = tiny_task()
    config = CONFIG.override("search", rerank=2)
    found = bmnas.search(task, run=tmp_path / "run", config=config)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert {len(row) for line in lines for row in json.loads(line)["gamma"][0]} == {6}
    write_figure(figure_of(*weights_parts(load_run(tmp_path / "run"))), tmp_path / "weights.svg")
    assert "Product" in (tmp_path / "weights.svg").read_text()

    # Whatever was found, a genotype with the operation in it is trained, exported and drawn.
    steps = tuple(dataclasses.replace(s, op="product") for s in found.genotype.cells[0].steps)
    cells = (Cell(found.genotype.cells[0].inputs, steps), *found.genotype.cells[1:])
    genotype = dataclasses.replace(found.genotype, cells=cells)
    genotype.save(tmp_path / "product.json")
    assert Genotype.load(tmp_path / "product.json") == genotype
    assert "Product(x, y)" in genotype_text(genotype)
    write_figure(draw_genotype(genotype), tmp_path / "architecture.svg")
    assert "Product" in (tmp_path / "architecture.svg").read_text()
    trained = bmnas.train(tmp_path / "product.json", task, run=tmp_path / "run2", config=config)
    network = bmnas.load_network(trained.network)
    assert any(isinstance(module, Product) for module in network.network.modules())
    assert export_bundle(network, task, tmp_path / "bundle").parity.passed


def test_it_is_drawn_at_random_judged_and_known_as_symmetric() -> None:
    space = CellSpace(("m0.1", "m0.2", "m1.1"), cells=1, steps=2, channels=4, length=4)
    draw = random.Random(0)
    drawn = [space.sample(draw) for _ in range(60)]
    assert "product" in {step.op for one in drawn for c in one.cells for step in c.steps}
    assert canonical(cell("x", "y")) == canonical(cell("y", "x"))
    supernet = space.supernet([3, 5, 4], classes=4, dropout=0.0)
    samples = tiny_samples(40)
    one_shot = OneShot(supernet, samples, head_for("multiclass"), torch.device("cpu"), seed=0)
    losses = [one_shot.loss(one) for one in (cell("x", "y"), space.sample(draw))]
    assert all(torch.tensor(losses).isfinite())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("product", "'product', which is registered already"),
        ("sum", "'sum', which is registered already"),
        ("A product", "expected a name of lower-case letters"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        register(dataclasses.replace(PRODUCT, name=name))


def test_the_pool_of_the_paper_stays_first() -> None:
    assert tuple(OPERATIONS)[: len(PAPER)] == PAPER
