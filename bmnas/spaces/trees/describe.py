"""A fusion tree as a drawing shows it: features, operations, classifier."""

from __future__ import annotations

from bmnas.spaces.description import Description, Node, leaf_nodes
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.tree import leaves, to_nodes

_LABELS = {"concat_dense": "concat + dense"}


def describe_tree(found: FusionTree) -> Description:
    """Return the leaves, the operations from the leaves up, and the classifier."""
    nodes = leaf_nodes(leaves(found.tokens))
    for n, (op, inputs) in enumerate(to_nodes(found.tokens)):
        note = f"linear {2 * found.width} → {found.width}" if op in _LABELS else ""
        nodes.append(Node(f"node{n + 1}", _LABELS.get(op, op), note, reads=tuple(inputs)))
    head = Node("classifier", "Classifier", "linear", "output", reads=(nodes[-1].name,))
    return Description(found.summary(), found.features, (*nodes, head))
