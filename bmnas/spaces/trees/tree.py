"""Fusion trees as plain data, in the form in which they are cut and joined.

A tree is a tuple of tokens in postfix order: ("image.2", "audio.1", "mul", "image.1", "add") is
add(mul(image.2, audio.1), image.1). A subtree is then a slice, and nothing here recurses. Leaves
are features, each at most once, whose names hold a dot, which those of operations never do.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Tree = tuple[str, ...]

#: What joins two vectors of one width; ``concat_dense`` is the one with weights.
OPERATIONS = ("add", "mul", "concat_dense", "max", "average")

#: More would be no architecture, but a file made to overflow something.
DEEPEST = 200


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
    stack: list[int] = []
    for token in tree:
        stack.append(1 + max(stack.pop(), stack.pop()) if token in OPERATIONS else 0)
    return stack[0]


def branch(tree: Tree, end: int) -> Tree:
    """Return the subtree whose root is the token at ``end``, counted from 0."""
    return tree[_start(tree, end) : end + 1]


def grafted(tree: Tree, end: int, scion: Tree) -> Tree:
    """Return ``tree`` with ``scion`` in the place of the subtree whose root is at ``end``."""
    return (*tree[: _start(tree, end)], *scion, *tree[end + 1 :])


def without_repeats(tree: Tree) -> Tree:
    """Return ``tree`` with every feature at its first leaf only, in postfix order."""
    seen: set[str] = set()

    def first(leaf: str) -> bool:
        new = leaf not in seen
        seen.add(leaf)
        return new

    return pruned(tree, first)


def pruned(tree: Tree, keep: Callable[[str], bool]) -> Tree:
    """Return ``tree`` with only the leaves that ``keep`` wants, one at least.

    The sibling of a leaf that goes takes the place of their parent.
    """
    stack: list[Tree] = []
    for token in tree:
        if token in OPERATIONS:
            right, left = stack.pop(), stack.pop()
            stack.append((*left, *right, token) if left and right else left or right)
        else:
            stack.append((token,) if keep(token) else ())
    return stack[0]


def normal(tree: Tree, features: Sequence[str]) -> Tree:
    """Return the one form of all trees that differ in the order of operands alone.

    Of two operands the one that reads the earliest of ``features`` comes first. All operations
    are symmetric: ``concat_dense`` up to the order of its weights' rows, and weights are drawn
    afresh for every network.
    """
    order = {name: number for number, name in enumerate(features)}
    stack: list[tuple[int, Tree]] = []
    for token in tree:
        if token in OPERATIONS:
            (low, left), (_, right) = sorted((stack.pop(), stack.pop()))
            stack.append((low, (*left, *right, token)))
        else:
            stack.append((order[token], (token,)))
    return stack[0][1]


def text(tree: Tree) -> str:
    """Return ``tree`` as a formula: add(mul(image.2, audio.1), image.1)."""
    stack: list[str] = []
    for token in tree:
        if token in OPERATIONS:
            right, left = stack.pop(), stack.pop()
            stack.append(f"{token}({left}, {right})")
        else:
            stack.append(token)
    return stack[0]


def to_nodes(tree: Tree) -> list[tuple[str, tuple[str, str]]]:
    """Return operation and inputs of every inner node; ``node1`` is the first, the last the root.

    Inputs are features or earlier nodes.
    """
    nodes: list[tuple[str, tuple[str, str]]] = []
    stack: list[str] = []
    for token in tree:
        if token in OPERATIONS:
            right, left = stack.pop(), stack.pop()
            nodes.append((token, (left, right)))
            stack.append(f"node{len(nodes)}")
        else:
            stack.append(token)
    return nodes


def from_nodes(nodes: Sequence[tuple[str, tuple[str, str]]]) -> Tree:
    """Return the tree whose inner nodes ``to_nodes`` gives."""
    trees: dict[str, Tree] = {}
    for number, (operation, (left, right)) in enumerate(nodes, start=1):
        operands = (*trees.get(left, (left,)), *trees.get(right, (right,)))
        trees[f"node{number}"] = (*operands, operation)
    return trees[f"node{len(nodes)}"]


def _start(tree: Tree, end: int) -> int:
    """Return where the subtree begins whose root is at ``end``."""
    wanted, start = 1, end
    while True:
        # An operation asks for two operands instead of one, a leaf for none.
        wanted += 1 if tree[start] in OPERATIONS else -1
        if wanted == 0:
            return start
        start -= 1
