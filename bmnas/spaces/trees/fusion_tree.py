"""A fusion tree as what a search finds: a file of its own, ``"format": "bmnas.tree/1"``.

Standard library only, like everything that reads genotypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bmnas.spaces.architecture import Architecture
from bmnas.spaces.plain_data import (
    check_features,
    list_of,
    object_of,
    provenance_of,
    strings,
    wrong,
)
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

_LARGEST = 65536  # as in a genotype


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
        for name in ("width", "length"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _LARGEST:
                raise wrong(name, value, f"an integer from 1 to {_LARGEST}")
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
        """Return it as JSON-ready plain data in the format of the file."""
        return {
            "format": self.FORMAT,
            "features": list(self.features),
            "width": self.width,
            "length": self.length,
            "nodes": plain_nodes(self.tokens),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def parse(cls, data: Any) -> FusionTree:
        """Build it from plain data; raises GenotypeError that names the place in it."""
        return _fusion_tree(data)


def plain_nodes(tree: Tree) -> list[dict[str, Any]]:
    """Return the inner nodes of ``tree`` as the file has them, the root last."""
    return [{"op": op, "inputs": list(inputs)} for op, inputs in to_nodes(tree)]


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


def _fusion_tree(data: Any) -> FusionTree:
    required = ("format", "features", "width", "length", "nodes")
    top = object_of(data, "", required, optional=("provenance",))
    if top["format"] != FusionTree.FORMAT:
        raise wrong("format", top["format"], repr(FusionTree.FORMAT))
    features = tuple(strings(top["features"], "features"))
    check_features(features)
    return FusionTree(
        features=features,
        width=top["width"],
        length=top["length"],
        tokens=_tokens(list_of(top["nodes"], "nodes"), features),
        provenance=provenance_of(top.get("provenance", {})),
    )


def _tokens(nodes: list[Any], features: tuple[str, ...]) -> Tree:
    """Return the tree of ``nodes``, each of which but the last is read once by a later one."""
    if not nodes:
        raise wrong("nodes", [], "at least one node")
    free = dict.fromkeys(features)
    found: list[tuple[str, tuple[str, str]]] = []
    for n, data in enumerate(nodes):
        place = f"nodes[{n}]"
        node = object_of(data, place, required=("op", "inputs"))
        # A list: what a file says may be anything.
        if node["op"] not in list(OPERATIONS):
            raise wrong(f"{place}.op", node["op"], f"one of {', '.join(OPERATIONS)}")
        inputs = strings(node["inputs"], f"{place}.inputs")
        if len(inputs) != 2:
            raise wrong(f"{place}.inputs", inputs, "two names")
        for name in inputs:
            if name not in free:
                expected = f"a feature or an earlier node that nothing reads yet: {', '.join(free)}"
                raise wrong(f"{place}.inputs", name, expected)
            del free[name]
        found.append((node["op"], (inputs[0], inputs[1])))
        free[f"node{n + 1}"] = None
    unread = [name for name in free if name not in features][:-1]
    if unread:
        raise wrong("nodes", f"{unread[0]}, which nothing reads", "one root, the last node")
    return from_nodes(found)
