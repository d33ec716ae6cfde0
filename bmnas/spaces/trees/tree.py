"""Fusion trees as plain data, in the form in which they are cut and joined.

A tree is a tuple of tokens in postfix order: ("image.2", "audio.1", "mul", "image.1", "add") is
add(mul(image.2, audio.1), image.1). A subtree is then a slice, and nothing here recurses. Leaves
are features, each at most once, whose names hold a dot, which those of operations never do.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

Tree = tuple[str, ...]

T = TypeVar("T")

#: What joins two vectors of one width; ``concat_dense`` is the one with weights.
OPERATIONS = ("add", "mul", "concat_dense", "max", "average")

#: More would be no architecture, but a file made to overflow something.
DEEPEST = 200

_TRIES = 20  # to find a child that reads two modalities; small parents may have none


def folded(tree: Tree, leaf: Callable[[str], T], join: Callable[[str, T, T], T]) -> T:
    """Return what ``join`` makes of every operation and its two operands, from the leaves up.

    ``leaf`` says what a feature is.
    """
    stack: list[T] = []
    for token in tree:
        if token in OPERATIONS:
            right, left = stack.pop(), stack.pop()
            stack.append(join(token, left, right))
        else:
            stack.append(leaf(token))
    return stack[0]


def leaves(tree: Tree) -> Tree:
    """Return the features at the leaves, from left to right."""
    return tuple(token for token in tree if token not in OPERATIONS)


def modalities(tree: Tree) -> set[str]:
    """Return the modalities that the leaves belong to."""
    return {name.partition(".")[0] for name in leaves(tree)}


def usable(tree: Tree) -> bool:
    """Tell whether ``tree`` reads two modalities or more and is at most ``DEEPEST`` nodes deep."""
    return len(modalities(tree)) > 1 and depth(tree) <= DEEPEST


def depth(tree: Tree) -> int:
    """Return how many operations lie on the longest way from a leaf to the root."""
    longest: int = folded(tree, lambda _: 0, lambda _, left, right: 1 + max(left, right))
    return longest


def branch(tree: Tree, end: int) -> Tree:
    """Return the subtree whose root is the token at ``end``, counted from 0."""
    return tree[_start(tree, end) : end + 1]


def grafted(tree: Tree, end: int, scion: Tree) -> Tree:
    """Return ``tree`` with ``scion`` in the place of the subtree whose root is at ``end``."""
    return (*tree[: _start(tree, end)], *scion, *tree[end + 1 :])


def without_repeats(tree: Tree) -> Tree:
    """Return ``tree`` with every feature at its first leaf only, in postfix order."""
    unseen = set(leaves(tree))

    def first(leaf: str) -> bool:
        new = leaf in unseen
        unseen.discard(leaf)
        return new

    return pruned(tree, first)


def pruned(tree: Tree, keep: Callable[[str], bool]) -> Tree:
    """Return ``tree`` with only the leaves that ``keep`` wants, one at least.

    The sibling of a leaf that goes takes the place of their parent.
    """

    def join(operation: str, left: Tree, right: Tree) -> Tree:
        return (*left, *right, operation) if left and right else left or right

    return folded(tree, lambda name: (name,) if keep(name) else (), join)


def normal(tree: Tree, features: Sequence[str]) -> Tree:
    """Return the one form of all trees that differ in the order of operands alone.

    Of two operands the one that reads the earliest of ``features`` comes first. All operations
    are symmetric: ``concat_dense`` up to the order of its weights' rows, and weights are drawn
    afresh for every network.
    """

    def join(operation: str, *operands: tuple[int, Tree]) -> tuple[int, Tree]:
        (low, left), (_, right) = sorted(operands)
        return low, (*left, *right, operation)

    return folded(tree, lambda name: (features.index(name), (name,)), join)[1]


def text(tree: Tree) -> str:
    """Return ``tree`` as a formula: add(mul(image.2, audio.1), image.1)."""
    return folded(tree, str, "{}({}, {})".format)


def to_nodes(tree: Tree) -> list[tuple[str, tuple[str, str]]]:
    """Return operation and inputs of every inner node; ``node1`` is the first, the last the root.

    Inputs are features or earlier nodes.
    """
    nodes: list[tuple[str, tuple[str, str]]] = []

    def join(operation: str, left: str, right: str) -> str:
        nodes.append((operation, (left, right)))
        return f"node{len(nodes)}"

    folded(tree, str, join)
    return nodes


def from_nodes(nodes: Sequence[tuple[str, tuple[str, str]]]) -> Tree:
    """Return the tree whose inner nodes ``to_nodes`` gives."""
    trees: dict[str, Tree] = {}
    for number, (operation, (left, right)) in enumerate(nodes, start=1):
        operands = (*trees.get(left, (left,)), *trees.get(right, (right,)))
        trees[f"node{number}"] = (*operands, operation)
    return trees[f"node{len(nodes)}"]


def random_tree(features: Sequence[str], draw: Random) -> Tree:
    """Return a tree over two to all of ``features``, each number of leaves as likely.

    Two of the trees that there are, at first the leaves, are joined by an operation until one is
    left, all choices even. Raises ValueError when the features are of one modality.
    """
    if len(modalities(tuple(features))) < 2:
        raise ValueError(f"received {', '.join(features)}, expected features of two modalities")
    while True:
        chosen = draw.sample(list(features), draw.randint(2, len(features)))
        trees: list[Tree] = [(name,) for name in chosen]
        while len(trees) > 1:
            left = trees.pop(draw.randrange(len(trees)))
            right = trees.pop(draw.randrange(len(trees)))
            trees.append((*left, *right, draw.choice(OPERATIONS)))
        if usable(trees[0]):
            return normal(trees[0], features)


def crossover(
    first: Tree, second: Tree, features: Sequence[str], draw: Random
) -> tuple[Tree, Tree]:
    """Return ``first`` and ``second`` after they have exchanged a branch each, no root.

    Of leaves that a child then has twice the first stays, see ``without_repeats``. Branches are
    drawn again where a child would read one modality; after 20 draws the parents are returned.
    """
    for _ in range(_TRIES):
        here, there = draw.randrange(len(first) - 1), draw.randrange(len(second) - 1)
        children = (
            _child(first, here, branch(second, there), features),
            _child(second, there, branch(first, here), features),
        )
        if all(map(usable, children)):
            return children
    return first, second


def mutated(tree: Tree, features: Sequence[str], draw: Random) -> Tree:
    """Return ``tree`` with a branch of a new random tree in the place of one of its own.

    Neither is a root. What would read one modality is drawn again, 20 times at most; then ``tree``
    is returned.
    """
    for _ in range(_TRIES):
        new = random_tree(features, draw)
        here, there = draw.randrange(len(tree) - 1), draw.randrange(len(new) - 1)
        child = _child(tree, here, branch(new, there), features)
        if usable(child):
            return child
    return tree


def _child(tree: Tree, end: int, scion: Tree, features: Sequence[str]) -> Tree:
    return normal(without_repeats(grafted(tree, end, scion)), features)


def _start(tree: Tree, end: int) -> int:
    """Return where the subtree begins whose root is at ``end``."""
    wanted, start = 1, end
    while True:
        # An operation asks for two operands instead of one, a leaf for none.
        wanted += 1 if tree[start] in OPERATIONS else -1
        if wanted == 0:
            return start
        start -= 1
