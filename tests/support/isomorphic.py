"""Isomorphic genotypes found by trying: which step is which, and the weights that go along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn

from bmnas.spaces.cells.genotype import Cell, Genotype
from bmnas.spaces.cells.network import FusionCell, FusionNetwork

SWAPPABLE = ("sum", "concat_fc")


@dataclass(frozen=True)
class Match:
    """For each live step of one Cell the number of the other's, and whether operands swap."""

    steps: tuple[int, ...]
    swapped: tuple[bool, ...]


def cell_matches(one: Cell, other: Cell) -> Iterator[Match]:
    """Yield the ways in which the steps of ``other`` are those of ``one``."""
    live, theirs = one.live_steps(), other.live_steps()
    if len(live) != len(theirs) or (len(one.steps) > 1) != (len(other.steps) > 1):
        return
    for order in permutations(theirs):
        name = {f"step{b + 1}": f"step{a + 1}" for a, b in zip(live, order, strict=True)}
        name |= {"x": "x", "y": "y"}
        swaps = []
        for a, b in zip(live, order, strict=True):
            mine = [n if n in name.values() else "zero" for n in one.steps[a].inputs]
            its = [name.get(n, "zero") for n in other.steps[b].inputs]
            op = one.steps[a].op
            if other.steps[b].op != op:
                break
            if mine == its:
                swaps.append(False)
            elif mine == its[::-1] and op in SWAPPABLE:
                swaps.append(True)
            else:
                break
        else:
            yield Match(order, tuple(swaps))


def matches(one: Genotype, other: Genotype) -> Iterator[tuple[tuple[int, ...], list[Match]]]:
    """Yield the Cells of ``other`` that are those of ``one``, in its order, and their steps."""
    count = len(one.cells)
    for order in permutations(range(count)):
        name = {f"cell{b + 1}": f"cell{a + 1}" for a, b in enumerate(order)}
        found = []
        for a, b in enumerate(order):
            mine, its = one.cells[a], other.cells[b]
            reads = 2 if mine.reads_y() else 1
            inputs = tuple(name.get(n, n) for n in its.inputs)
            if mine.reads_y() != its.reads_y() or inputs[:reads] != mine.inputs[:reads]:
                break
            match = next(cell_matches(mine, its), None)
            if match is None:
                break
            found.append(match)
        else:
            yield order, found


def isomorphic(one: Genotype, other: Genotype) -> bool:
    return next(matches(one, other), None) is not None


@torch.no_grad()
def take_over(one: Genotype, mine: FusionNetwork, other: Genotype, its: FusionNetwork) -> None:
    """Give ``mine``, of genotype ``one``, the weights of an isomorphic network."""
    order, found = next(matches(one, other))
    for name, projection in zip(mine.features, mine.projections, strict=True):
        copy(projection, its.projections[its.features.index(name)])
    for a, (b, match) in enumerate(zip(order, found, strict=True)):
        _take_cell(mine.cells[a], its.cells[b], other.cells[b], match)
    blocks = len(order)
    length, width = mine.head.norm.normalized_shape
    for own, theirs in zip(mine.head.norm.parameters(), its.head.norm.parameters(), strict=True):
        own.copy_(_permuted(theirs, order, width // blocks))
    mine.head.classifier.bias.copy_(its.head.classifier.bias)
    weight = its.head.classifier.weight.unflatten(1, (length, width))
    moved = _permuted(weight, order, width // blocks)
    mine.head.classifier.weight.copy_(moved.flatten(1))


def _take_cell(mine: FusionCell, its: FusionCell, cell: Cell, match: Match) -> None:
    theirs = [cell.live_steps().index(step) for step in match.steps]
    for own, b, swapped in zip(mine.operations, theirs, match.swapped, strict=True):
        copy(own, its.operations[b])
        if swapped and hasattr(own, "project"):
            own.project.linear.weight.copy_(own.project.linear.weight.roll(
                own.project.linear.in_features // 2, 1
            ))  # fmt: skip
    copy(mine.output, its.output)
    if mine.output.merge is not None:
        linear = mine.output.merge.linear
        linear.weight.copy_(_permuted(linear.weight, theirs, linear.in_features // len(theirs)))


def _permuted(values: Tensor, order: tuple[int, ...] | list[int], size: int) -> Tensor:
    return torch.cat([values.split(size, -1)[b] for b in order], -1)


def copy(mine: nn.Module, its: nn.Module) -> None:
    mine.load_state_dict(its.state_dict())


@torch.no_grad()
def scramble(network: nn.Module) -> None:
    """Give every weight and statistic a value of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_()
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
