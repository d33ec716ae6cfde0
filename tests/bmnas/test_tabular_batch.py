from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import pytest
import torch
from isomorphic import scramble
from torch import nn

from bmnas.features.layers import Dropout
from bmnas.lab.tables.batch import BatchedNetwork, structure
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.cells.space import CellSpace
from bmnas.training.heads import head_for

CHANNELS = {"a.1": 3, "a.2": 2, "b.1": 4}
FEATURES = tuple(CHANNELS)


def groups(cells: int, steps: int) -> list[list[Genotype]]:
    found: dict[object, list[Genotype]] = defaultdict(list)
    for genotype in CellSpace(FEATURES, cells, steps, 8, 4).distinct().values():
        found[structure(genotype)[0]].append(genotype)
    return list(found.values())


def networks_of(genotypes: list[Genotype], dtype: torch.dtype) -> list[FusionNetwork]:
    networks = [FusionNetwork(g, CHANNELS, classes=3, dropout=0.0).to(dtype) for g in genotypes]
    for network in networks:
        scramble(network)
        for module in network.modules():
            if isinstance(module, Dropout):
                module.p = 0.0  # attention has its own
    return networks


def compare(genotypes: list[Genotype], dtype: torch.dtype, tolerance: float) -> None:
    """Compare logits, gradients and statistics of a batch with those of its networks."""
    close: Any = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    networks = networks_of(genotypes, dtype)
    batched = BatchedNetwork(genotypes, networks)
    x = {name: torch.randn(6, 4, channels, dtype=dtype) for name, channels in CHANNELS.items()}
    labels = torch.randint(0, 3, (6,))
    logits = batched([x[name] for name in batched.features])
    head_for("multiclass").network_losses(logits, labels).sum().backward()
    for g, network in enumerate(networks):
        own = network([x[name] for name in network.features])
        close(logits[:, g], own)
        head_for("multiclass").loss(own, labels).backward()
    after = BatchedNetwork(genotypes, networks)
    for (name, mine), its in zip(batched.named_buffers(), after.buffers(), strict=True):
        close(mine, its, msg=name)
    evaluated = batched.eval()([x[name] for name in batched.features])
    for g, network in enumerate(networks):
        close(evaluated[:, g], network.eval()([x[name] for name in network.features]))
    # A network whose weights are the gradients: a batch of such lays them out as the batch does.
    for network in networks:
        for parameter in network.parameters():
            parameter.data = parameter.grad
    gradients = BatchedNetwork(genotypes, networks)
    for (name, mine), its in zip(batched.named_parameters(), gradients.parameters(), strict=True):
        close(mine.grad, its.detach(), msg=name)


def reads_a_zero(genotype: Genotype) -> bool:
    steps = genotype.cells[0].steps
    dead = {f"step{m + 1}" for m, step in enumerate(steps) if step.op == "zero"}
    return any(dead.intersection(step.inputs) for step in steps if step.op != "zero")


def test_every_structure_of_one_cell_equals_its_networks() -> None:
    torch.manual_seed(0)
    structures = groups(1, 2)
    assert len(structures) == 112
    ops = {step.op for group in structures for step in group[0].cells[0].steps}
    assert ops == {"zero", "sum", "attention", "linear_glu", "concat_fc"}
    for number, group in enumerate(structures):
        if number % 5 == 0:
            compare(group, torch.float64, 1e-9)
        # The BatchNorm of a constant divides what rounding left by the root of its epsilon.
        compare(group, torch.float32, 1e-4 if reads_a_zero(group[0]) else 1e-5)


def test_cells_that_share_features_and_read_each_other_equal_their_networks() -> None:
    torch.manual_seed(0)
    for group in groups(2, 1)[::12]:
        compare(group, torch.float64, 1e-9)


def test_a_structure_is_what_is_left_without_the_features() -> None:
    steps = (Step("sum", ("x", "y")),)
    cells = Cell(("a.1", "b.1"), steps), Cell(("b.1", "cell1"), steps)
    cells_of, slots = structure(Genotype(FEATURES, 8, 4, cells))
    assert slots == ("a.1", "b.1")
    assert [cell.inputs for cell in cells_of] == [("0", "1"), ("1", "cell1")]
    dead = Genotype(FEATURES, 8, 4, (Cell(("a.2", "b.1"), (Step("zero", ("x", "y")),)),))
    assert structure(dead)[1] == ("a.2",)


def test_several_structures_are_refused() -> None:
    one, two, *_ = (group[0] for group in groups(1, 1))
    with pytest.raises(ValueError, match="several structures"):
        BatchedNetwork([one, two], networks_of([one, two], torch.float32))


def test_dropout_drops_for_every_candidate_by_itself() -> None:
    torch.manual_seed(0)
    cell = Cell(("a.1", "b.1"), (Step("concat_fc", ("x", "y")), Step("linear_glu", ("x", "y"))))
    genotype = Genotype(FEATURES, 64, 4, (cell,))
    network = FusionNetwork(genotype, CHANNELS, classes=3, dropout=0.5)
    batched = BatchedNetwork([genotype, genotype], [network, network])
    shares: list[Any] = []

    def share(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        shares.append((output == 0).flatten(1).float().mean(1))

    # ReLU makes half of a normalised value zero, dropout half of the others.
    batched.cells[0].operations[0].register_forward_hook(share)
    batched.cells[0].operations[1].register_forward_hook(share)
    x = [torch.randn(256, 4, CHANNELS[name]) for name in batched.features]
    assert torch.equal(*batched.eval()(x).unbind(1))
    shares.clear()
    first, second = batched.train()(x).unbind(1)
    assert not torch.equal(first, second)
    torch.testing.assert_close(shares[0], torch.full((2,), 0.75), atol=0.05, rtol=0)
    torch.testing.assert_close(shares[1], torch.full((2,), 0.5), atol=0.02, rtol=0)
