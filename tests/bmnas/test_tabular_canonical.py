from __future__ import annotations

import random

import pytest
import torch
from isomorphic import isomorphic, scramble, take_over

from bmnas.machine.errors import UserError
from bmnas.spaces.cells.canonical import canonical
from bmnas.spaces.cells.derive import derive_genotype
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.cells.space import CellSpace

CHANNELS = {"a.1": 3, "a.2": 2, "b.1": 4}
FEATURES = tuple(CHANNELS)
SIX = tuple(f"{modality}.{k}" for modality in ("image", "audio") for k in (1, 2, 3))


def space(cells: int, steps: int, features: tuple[str, ...] = FEATURES) -> CellSpace:
    return CellSpace(features, cells, steps, 4, 2)


def named(*steps: tuple[str, str, str], inputs: tuple[str, str] = ("a.1", "b.1")) -> str:
    cell = Cell(inputs, tuple(Step(op, (x, y)) for op, x, y in steps))
    return canonical(Genotype(FEATURES, 4, 2, (cell,)))


def test_names_are_what_they_should() -> None:
    assert named(("attention", "y", "x")) == "a.1,b.1:attention(y,x)"
    assert named(("sum", "y", "x")) == "a.1,b.1:sum(x,y)"
    assert named(("zero", "y", "x")) == "a.1:x"
    assert named(("sum", "x", "y"), ("zero", "x", "y")) == "a.1,b.1:[sum(x,y)]"
    assert named(("zero", "x", "y"), ("concat_fc", "x", "step1")) == "a.1:[concat_fc(0,x)]"
    two = named(("attention", "x", "y"), ("concat_fc", "step1", "x"))
    assert two == "a.1,b.1:[attention(x,y) concat_fc(1,x)]"


def test_steps_that_do_not_read_each_other_may_change_places() -> None:
    one = named(("attention", "x", "y"), ("linear_glu", "y", "x"))
    assert one == named(("linear_glu", "y", "x"), ("attention", "x", "y"))
    assert one != named(("linear_glu", "x", "y"), ("attention", "x", "y"))


def test_cells_that_do_not_read_each_other_may_change_places() -> None:
    one, two = (Cell(("a.1", name), (Step("sum", ("x", "y")),)) for name in ("a.2", "b.1"))
    last = Cell(("b.1", "cell2"), (Step("attention", ("x", "y")),))
    moved = Cell(("b.1", "cell1"), last.steps)
    pairs = ((one, two, last), (two, one, moved)), ((one, two, last), (one, two, moved))
    (same, other), (_, different) = (
        tuple(canonical(Genotype(FEATURES, 4, 2, cells)) for cells in pair) for pair in pairs
    )
    assert same == other != different


def test_the_networks_of_a_name_compute_the_same_with_matching_weights() -> None:
    torch.manual_seed(0)
    draw = random.Random(0)
    genotypes = [
        *space(1, 2, FEATURES[1:]).genotypes(),
        *draw.sample(list(space(2, 1, FEATURES[1:]).genotypes()), 100),
    ]
    first: dict[object, tuple[Genotype, FusionNetwork]] = {}
    compared = 0
    x = {name: torch.randn(5, 2, channels) for name, channels in CHANNELS.items()}
    for genotype in genotypes:
        network = FusionNetwork(genotype, CHANNELS, classes=3, dropout=0.0).eval()
        key = genotype.features, canonical(genotype)
        if key not in first:
            scramble(network)
            first[key] = genotype, network
            continue
        other, its = first[key]
        take_over(genotype, network, other, its)
        expected = its([x[name] for name in its.features])
        torch.testing.assert_close(network([x[name] for name in network.features]), expected)
        compared += 1
    assert compared > 200


@pytest.mark.parametrize(("cells", "steps", "features"), [(1, 2, 2), (1, 1, 3), (2, 1, 2)])
def test_the_space_holds_every_network_once(cells: int, steps: int, features: int) -> None:
    """Classes found by comparing genotypes in pairs, by trying all ways to match their steps."""
    small = space(cells, steps, FEATURES[:features])
    classes: list[Genotype] = []
    for genotype in small.genotypes():
        if not any(isomorphic(genotype, known) for known in classes):
            classes.append(genotype)
    found = small.distinct()
    assert list(found.values()) == classes
    assert [canonical(genotype) for genotype in found.values()] == list(found)


def test_the_number_of_networks_is_that_counted_by_hand() -> None:
    # Two operations of two orders, two without: 6 with each pair; x alone for 5 features.
    assert len(space(1, 1, SIX).distinct()) == 15 * 6 + 5
    # Of two steps over x and y: 21 unordered pairs; the second on x or y and the first: 6 * 12;
    # one step left: on x and y 6, on y and a zero 6, on x and a zero 6 for 5 features, none 5.
    assert len(space(1, 2, SIX).distinct()) == 15 * (21 + 6 * 12 + 6 + 6) + 5 * 6 + 5


@pytest.mark.parametrize(("cells", "steps"), [(1, 2), (2, 1)])
def test_what_searches_yield_is_in_the_space(cells: int, steps: int) -> None:
    names = space(cells, steps).distinct()
    draw = random.Random(0)

    def numbers(count: int) -> list[float]:
        return [draw.random() for _ in range(count)]

    for _ in range(200):
        derived = derive_genotype(
            [numbers(3 + k) for k in range(cells)],
            [[numbers(2 + m) for m in range(steps)] for _ in range(cells)],
            [[numbers(5) for _ in range(steps)] for _ in range(cells)],
            features=FEATURES,
            channels=4,
            length=2,
        )
        assert canonical(derived) in names
        assert canonical(space(cells, steps).sample(draw)) in names


def test_neighbours_differ_in_one_choice_and_it_goes_both_ways() -> None:
    small = space(2, 1)
    genotypes = list(small.genotypes())
    genotype = genotypes[777]
    neighbours = small.neighbours(genotype)
    expected = [other for other in genotypes if _choices_apart(genotype, other) == 1]
    assert sorted(map(str, neighbours)) == sorted(map(str, expected))
    assert all(genotype in small.neighbours(other) for other in neighbours)


def _choices_apart(one: Genotype, other: Genotype) -> int:
    apart = 0
    for a, b in zip(one.cells, other.cells, strict=True):
        apart += a.inputs != b.inputs
        for s, t in zip(a.steps, b.steps, strict=True):
            apart += (s.op != t.op) + (s.inputs != t.inputs)
    return apart


def test_a_space_that_nobody_could_train_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"2 Cells of 2 steps over 6 features, .* at most 1,000,000"
    ):
        space(2, 2, SIX).distinct()
