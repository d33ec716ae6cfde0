"""How genotypes of Cells are drawn, crossed and told apart."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from random import Random

import pytest

from bmnas.spaces.cells.derive import ArchitectureWeights
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.operations import PAPER, operation_names
from bmnas.spaces.cells.space import CellSpace

FEATURES = ("m0.1", "m0.2", "m1.1")


def space(cells: int = 1, steps: int = 1, features: tuple[str, ...] = FEATURES) -> CellSpace:
    return CellSpace(features, cells, steps, 8, 4)


def test_genotypes_are_drawn_evenly_from_those_of_a_derivation() -> None:
    draw = Random(0)
    drawn = [space(2).sample(draw) for _ in range(6000)]
    pairs = Counter(genotype.cells[0].inputs for genotype in drawn)
    assert set(pairs) == set(combinations(FEATURES, 2))
    assert {genotype.cells[1].steps[0].op for genotype in drawn} == set(operation_names())
    # A third each within five standard deviations; inputs in node order, steps in either.
    for count in pairs.values():
        assert abs(count / 6000 - 1 / 3) < 0.031
    steps = {genotype.cells[0].steps[0].inputs for genotype in drawn}
    assert steps == {("x", "y"), ("y", "x")}


@pytest.mark.parametrize(("cells", "steps"), [(1, 1), (4, 3)])
def test_every_drawn_network_reads_two_features(cells: int, steps: int) -> None:
    draw, small = Random(1), space(cells, steps, FEATURES[:2])
    for _ in range(300):
        genotype = small.sample(draw)
        assert len(genotype.live_features()) == 2
        assert (len(genotype.cells), len(genotype.cells[0].steps)) == (cells, steps)


def test_choices_are_drawn_in_proportion_to_the_relaxed_weights() -> None:
    weights = ArchitectureWeights(
        alpha=[[0.2, 0.4, 0.8]], beta=[[[0.3, 0.6]]], gamma=[[[0.0, 0.1, 0.2, 0.3, 0.4]]]
    )
    draw = Random(0)
    drawn = [space().sample_from(weights, draw).cells[0] for _ in range(6000)]
    pairs = Counter(cell.inputs for cell in drawn)
    products = {(0, 1): 0.08, (0, 2): 0.16, (1, 2): 0.32}
    for (i, j), product in products.items():
        share = pairs[FEATURES[i], FEATURES[j]] / len(drawn)
        assert share == pytest.approx(product / sum(products.values()), abs=0.03)
    operations = Counter(cell.steps[0].op for cell in drawn)
    for name, weight in zip(PAPER, weights.gamma[0][0], strict=True):
        assert operations[name] / len(drawn) == pytest.approx(weight, abs=0.03)


@pytest.mark.parametrize(
    ("alpha", "gamma"),
    [
        # Nothing but steps that are dropped, so that x alone is read.
        ([1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0, 0.0]),
        # Weights too small for their product.
        ([1e-200, 1e-200, 1e-200], [1.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_weights_that_leave_a_single_feature_still_give_networks(
    alpha: list[float], gamma: list[float]
) -> None:
    weights = ArchitectureWeights(alpha=[alpha], beta=[[[1.0, 1.0]]], gamma=[[gamma]])
    draw = Random(0)
    drawn = [space().sample_from(weights, draw) for _ in range(20)]
    assert all(len(genotype.live_features()) == 2 for genotype in drawn)
    assert len(set(drawn)) > 5


def test_children_have_choices_of_both_parents() -> None:
    one = Genotype(FEATURES, 8, 4, (Cell(("m0.1", "m1.1"), (Step("sum", ("x", "y")),) * 2),))
    two = Genotype(FEATURES, 8, 4, (Cell(("m0.2", "m1.1"), (Step("attention", ("y", "x")),) * 2),))
    draw = Random(0)
    children = {space(1, 2).crossed(one, two, draw) for _ in range(50)}
    texts = {(a.cells[0].inputs[0], *(s.op for s in a.cells[0].steps)) for a, _ in children}
    assert texts == {("m0.1", "sum", "attention"), ("m0.1", "attention", "attention")}
