"""What evolution does to trees: draw, cross, mutate.

Every function takes the generator that it draws from. Trees are in normal form, before and after,
and read two modalities or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bmnas.spaces.trees.tree import (
    OPERATIONS,
    Tree,
    branch,
    grafted,
    modalities,
    normal,
    usable,
    without_repeats,
)

_TRIES = 20  # to find a child that reads two modalities; small parents may have none


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
