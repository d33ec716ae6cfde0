from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmnas.spaces.cells.derive import cell_inputs, derive_genotype, step_inputs
from bmnas.spaces.cells.genotype import Cell, Step
from bmnas.spaces.cells.operations import PAPER

# Few values, exact in binary, so that ties are many and products are exact.
WEIGHT = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


def rows_of(features: int, cells: int) -> st.SearchStrategy[tuple[list[float], ...]]:
    rows = [st.lists(WEIGHT, min_size=features + k, max_size=features + k) for k in range(cells)]
    return st.tuples(*rows)


ALPHA = st.tuples(st.integers(2, 5), st.integers(1, 4)).flatmap(lambda sizes: rows_of(*sizes))


def by_brute_force(alpha: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Eq. 3 with footnote 1, written as the paper says it: try every pair, keep the best."""
    chosen: list[tuple[int, int]] = []
    for weights in alpha:
        used = {node for pair in chosen for node in pair}
        best, best_score = None, -1.0
        for i in range(len(weights)):
            for j in range(i + 1, len(weights)):
                if i in used and j in used:
                    continue
                if weights[i] * weights[j] > best_score:
                    best, best_score = (i, j), weights[i] * weights[j]
        assert best is not None
        chosen.append(best)
    return chosen


@given(ALPHA)
@settings(deadline=None, max_examples=100)
def test_cells_take_the_pairs_that_brute_force_finds(alpha: tuple[list[float], ...]) -> None:
    assert cell_inputs(alpha) == by_brute_force(alpha)


@given(ALPHA)
@settings(deadline=None, max_examples=50)
def test_every_cell_takes_something_new_and_comes_after_it(alpha: tuple[list[float], ...]) -> None:
    taken: set[int] = set()
    for weights, pair in zip(alpha, cell_inputs(alpha), strict=True):
        assert 0 <= pair[0] < pair[1] < len(weights)
        assert not taken.issuperset(pair)
        taken.update(pair)


@given(st.lists(WEIGHT, min_size=2, max_size=5))
@settings(deadline=None, max_examples=50)
def test_steps_take_the_two_largest(weights: list[float]) -> None:
    first, second = step_inputs(weights)
    others = [w for n, w in enumerate(weights) if n not in (first, second)]
    assert first != second
    assert weights[first] >= weights[second] >= max(others, default=0.0)
    # Of equals the earlier node comes first.
    assert first == weights.index(max(weights))
    assert second == min(
        n for n in range(len(weights)) if n != first and weights[n] == weights[second]
    )


@pytest.mark.parametrize(
    ("alpha", "pairs"),
    [
        ([[0.9, 0.1, 0.8]], [(0, 2)]),
        ([[0.5, 0.5, 0.5]], [(0, 1)]),
        # Both of the best were taken, so the second Cell takes the next best pair.
        ([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1, 0.2]], [(0, 1), (0, 3)]),
        # The first Cell is a node for the second.
        ([[0.9, 0.8, 0.1], [0.1, 0.2, 0.6, 0.9]], [(0, 1), (2, 3)]),
        # A product of zero is still a choice.
        ([[0.0, 0.0]], [(0, 1)]),
    ],
)
def test_cell_inputs_by_hand(alpha: list[list[float]], pairs: list[tuple[int, int]]) -> None:
    assert cell_inputs(alpha) == pairs


def test_a_genotype_by_hand() -> None:
    zero, total, attention, glu, concat = (
        [float(name == chosen) for name in PAPER] for chosen in PAPER
    )
    assert (zero[0], concat[-1]) == (1.0, 1.0)
    genotype = derive_genotype(
        alpha=[[0.1, 0.9, 0.8], [0.2, 0.3, 0.9, 0.7]],
        beta=[[[0.4, 0.6], [0.5, 0.1, 0.5]], [[0.5, 0.5], [0.1, 0.2, 0.9]]],
        gamma=[[attention, glu], [zero, concat]],
        features=("a.1", "a.2", "b.1"),
        channels=16,
        length=4,
    )
    assert genotype.cells == (
        # y has the larger weight: it comes first. x and step1 tie: the earlier node comes first.
        Cell(("a.2", "b.1"), (Step("attention", ("y", "x")), Step("linear_glu", ("x", "step1")))),
        Cell(("b.1", "cell1"), (Step("zero", ("x", "y")), Step("concat_fc", ("step1", "y")))),
    )
    assert (genotype.channels, genotype.length) == (16, 4)
    assert total == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_an_operation_that_ties_is_the_earlier_of_the_pool() -> None:
    genotype = derive_genotype(
        [[0.5, 0.5]], [[[0.5, 0.5]]], [[[0.2] * 5]], features=("a.1", "b.1"), channels=8, length=4
    )
    assert genotype.cells[0].steps == (Step("zero", ("x", "y")),)
    assert genotype.live_features() == ("a.1",)


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_whatever_the_weights_the_genotype_is_valid(data: st.DataObject) -> None:
    features, cells, steps = (
        data.draw(st.integers(low, high)) for low, high in ((2, 4), (1, 3), (1, 3))
    )
    alpha = data.draw(rows_of(features, cells))
    row = st.lists(WEIGHT, min_size=5, max_size=5)
    beta = data.draw(st.tuples(*[rows_of(2, steps)] * cells))
    gamma = data.draw(st.tuples(*[st.tuples(*[row] * steps)] * cells))
    names = [f"m.{f}" for f in range(features)]
    genotype = derive_genotype(alpha, beta, gamma, features=names, channels=8, length=4)
    for cell, rows, weights in zip(genotype.cells, beta, gamma, strict=True):
        nodes = ["x", "y", *(f"step{m + 1}" for m in range(steps))]
        # A Cell's inputs stand in node order.
        order = [*names, *(f"cell{k + 1}" for k in range(cells))]
        assert order.index(cell.inputs[0]) < order.index(cell.inputs[1])
        for step, edges, pool in zip(cell.steps, rows, weights, strict=True):
            assert step.op == PAPER[pool.index(max(pool))]
            assert step.inputs == tuple(nodes[n] for n in step_inputs(edges))
