"""A fusion tree as what a search finds: a file of its own, ``"format": "bmnas.tree/1"``.

Standard library only, like everything that reads genotypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from bmnas.machine.schema import OneOf, plain
from bmnas.spaces.architecture import Architecture, check_features, parsed, wrong
from bmnas.spaces.trees.tree import (
    DEEPEST,
    OPERATIONS,
    Tree,
    depth,
    from_nodes,
    leaves,
    modalities,
    to_nodes,
)
from bmnas.training.settings import Size


@dataclass(frozen=True)
class NodeEntry:
    """An inner node in the file; its inputs are features or earlier nodes, ``node1``, …."""

    op: Annotated[str, OneOf(OPERATIONS)]
    inputs: tuple[str, str]


@dataclass(frozen=True)
class TreeFile:
    """What the file holds besides its format."""

    features: tuple[str, ...]
    width: Size
    length: Size
    nodes: tuple[NodeEntry, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FusionTree(Architecture):
    """A tree over ``features``, each pooled to ``length`` positions, of vectors of ``width``.

    ``tokens`` are the tree in postfix order, see ``bmnas.spaces.trees.tree``. Raises GenotypeError
    when it is no tree, has a leaf twice, or reads a single modality.
    """

    FORMAT: ClassVar[str] = "bmnas.tree/1"

    features: tuple[str, ...]
    width: int
    length: int
    tokens: Tree
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_features(self.features)
        _check_tokens(self.tokens, self.features)

    def live_features(self) -> tuple[str, ...]:
        """Return the features at the leaves, in the order of ``features``."""
        read = set(leaves(self.tokens))
        return tuple(name for name in self.features if name in read)

    def summary(self) -> str:
        """Return the number of features that are fused, the width and the positions."""
        count = len(leaves(self.tokens))
        return f"tree of {count} features, vectors of {self.width}, L = {self.length} positions"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready plain data: the file has inner nodes, the root last."""
        entries = tuple(NodeEntry(op, inputs) for op, inputs in to_nodes(self.tokens))
        file = TreeFile(self.features, self.width, self.length, entries, self.provenance)
        return {"format": self.FORMAT, **plain(file)}

    @classmethod
    def parse(cls, data: Any) -> FusionTree:
        """Build it from plain data; raises GenotypeError that names the place in it."""
        file = parsed(TreeFile, data, cls.FORMAT)
        check_features(file.features)
        tokens = _tokens(file.nodes, file.features)
        return cls(file.features, file.width, file.length, tokens, file.provenance)


def _check_tokens(tokens: Tree, features: tuple[str, ...]) -> None:
    size = 0
    for token in tokens:
        if token not in OPERATIONS and token not in features:
            raise wrong("nodes", token, f"a feature or an operation: {', '.join(features)}")
        size += -1 if token in OPERATIONS else 1
        if size < 1:
            break
    if size != 1 or len(tokens) < 3:
        raise wrong("nodes", list(tokens), "a tree with an operation, in postfix order")
    read = leaves(tokens)
    if len(set(read)) < len(read):
        raise wrong("nodes", list(read), "every feature at one leaf at most")
    if len(modalities(tokens)) < 2:
        raise wrong("nodes", list(read), "features of two modalities or more")
    if depth(tokens) > DEEPEST:
        raise wrong("nodes", f"{depth(tokens)} levels", f"at most {DEEPEST}")


def _tokens(nodes: tuple[NodeEntry, ...], features: tuple[str, ...]) -> Tree:
    """Return the tree of ``nodes``, each of which but the last is read once by a later one."""
    if not nodes:
        raise wrong("nodes", [], "at least one node")
    free = dict.fromkeys(features)
    for n, node in enumerate(nodes):
        place = f"nodes[{n}].inputs"
        if len(node.inputs) != 2:
            raise wrong(place, list(node.inputs), "two names")
        for name in node.inputs:
            if name not in free:
                expected = f"a feature or an earlier node that nothing reads yet: {', '.join(free)}"
                raise wrong(place, name, expected)
            del free[name]
        free[f"node{n + 1}"] = None
    unread = [name for name in free if name not in features][:-1]
    if unread:
        raise wrong("nodes", f"{unread[0]}, which nothing reads", "one root, the last node")
    return from_nodes([(node.op, node.inputs) for node in nodes])
