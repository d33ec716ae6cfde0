"""Drawing, crossing, mutating and selecting trees, by hand and with seeded generators."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from scripted import Scripted

from bmnas.spaces.trees.tree import (
    OPERATIONS,
    Tree,
    crossover,
    leaves,
    mutated,
    normal,
    random_tree,
    usable,
)

FEATURES = ("a.1", "a.2", "b.1", "b.2")


def words(line: str) -> Tree:
    return tuple(line.split())


def test_a_random_tree_joins_two_trees_at_a_time() -> None:
    draw = Scripted(
        3,  # leaves
        ["b.1", "a.2", "a.1"],
        *(0, 1, "mul"),  # b.1 and, of a.2 and a.1, the second
        *(1, 0, "add"),  # of a.2 and mul(b.1, a.1) the second, and what is left
    )
    # add(mul(b.1, a.1), a.2), in normal form.
    assert random_tree(FEATURES, draw) == words("a.1 b.1 mul a.2 add")
    assert draw.done()


def test_a_random_tree_of_one_modality_is_drawn_again() -> None:
    draw = Scripted(2, ["a.1", "a.2"], 0, 0, "add", 2, ["a.1", "b.2"], 0, 0, "max")
    assert random_tree(FEATURES, draw) == words("a.1 b.2 max")
    assert draw.done()


def test_features_of_one_modality_have_no_tree() -> None:
    with pytest.raises(ValueError, match=r"received a\.1, a\.2, expected features of two"):
        random_tree(("a.1", "a.2"), Random(0))


def test_random_trees_have_every_size_and_operation() -> None:
    draw = Random(0)
    trees = [random_tree(FEATURES, draw) for _ in range(4000)]
    assert all(usable(tree) and normal(tree, FEATURES) == tree for tree in trees)
    sizes = Counter(len(leaves(tree)) for tree in trees)
    # A third of the pairs are of one modality and drawn again: 2/3 to 1 to 1.
    for size, share in ((2, 1 / 4), (3, 3 / 8), (4, 3 / 8)):
        assert sizes[size] / 4000 == pytest.approx(share, abs=0.04)
    drawn = Counter(token for tree in trees for token in tree if token in OPERATIONS)
    for operation in OPERATIONS:
        assert drawn[operation] / drawn.total() == pytest.approx(0.2, abs=0.02)


def test_crossover_exchanges_branches() -> None:
    first = words("a.1 b.1 mul a.2 add")  # add(mul(a.1, b.1), a.2)
    second = words("a.1 b.2 average a.2 max")  # max(average(a.1, b.2), a.2)
    draw = Scripted(2, 1)  # mul(a.1, b.1) against b.2
    one, other = crossover(first, second, FEATURES, draw)
    # add(b.2, a.2), operands in order.
    assert one == words("a.2 b.2 add")
    # max(average(a.1, mul(a.1, b.1)), a.2): the second a.1 goes, and mul with it.
    assert other == words("a.1 b.1 average a.2 max")
    assert draw.done()


def test_crossover_draws_again_where_a_child_reads_one_modality() -> None:
    first, second = words("a.1 b.1 add"), words("a.2 b.2 mul")
    draw = Scripted(1, 0, 0, 0)  # b.1 against a.2 gives add(a.1, a.2); then a.1 against a.2
    assert crossover(first, second, FEATURES, draw) == (
        words("a.2 b.1 add"),
        words("a.1 b.2 mul"),
    )
    assert draw.done()


def test_crossover_of_which_nothing_comes_returns_the_parents() -> None:
    first, second = words("a.1 b.1 add"), words("a.2 b.2 mul")
    draw = Scripted(*[1, 0] * 20)
    assert crossover(first, second, FEATURES, draw) == (first, second)
    assert draw.done()


def test_mutation_grafts_a_branch_of_a_new_tree() -> None:
    tree = words("a.1 b.1 mul a.2 add")
    new = (2, ["b.2", "a.2"], 0, 0, "max")  # max(b.2, a.2), that is max(a.2, b.2)
    draw = Scripted(*new, 0, 1)  # a.1 makes room for b.2
    # add(mul(b.2, b.1), a.2): a.2 is the earliest, then b.1.
    assert mutated(tree, FEATURES, draw) == words("a.2 b.1 b.2 mul add")
    assert draw.done()


def test_mutation_draws_again_where_a_tree_would_read_one_modality() -> None:
    tree = words("a.1 b.1 add")
    new = (2, ["a.2", "b.2"], 0, 0, "max")
    draw = Scripted(*new, 1, 0, *new, 1, 1)  # a.2 for b.1; then b.2 for b.1
    assert mutated(tree, FEATURES, draw) == words("a.1 b.2 add")
    assert draw.done()
    hopeless = Scripted(*(*new, 1, 0) * 20)
    assert mutated(tree, FEATURES, hopeless) == tree
    assert hopeless.done()


def test_what_is_bred_is_in_order_and_of_use() -> None:
    draw = Random(3)
    names = [f"{m}.{n}" for m in "abc" for n in range(3)]
    pool = [random_tree(names, draw) for _ in range(10)]
    for _ in range(500):
        children = crossover(*draw.sample(pool, 2), names, draw)
        for child in (*children, mutated(children[0], names, draw)):
            assert usable(child)
            assert normal(child, names) == child
            assert len(set(leaves(child))) == len(leaves(child))
