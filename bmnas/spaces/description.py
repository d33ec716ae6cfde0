"""What an architecture looks like, as plain data: its nodes, and what each of them reads.

A search space describes its genotypes in this form. ``bmnas.report`` draws the description as a
picture and as text, and knows no space. Standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

#: A feature stands lowest in a picture. An input is a port of a group: a small disc on its edge.
Kind = Literal["feature", "input", "operation", "output"]


@dataclass(frozen=True)
class Node:
    """Something that is computed, or a feature that is read.

    ``name`` is its own, such as ``cell1/step2``; texts show what follows the last slash. ``label``
    is what its box says, for a feature the name of the feature, whose modality gives the colour;
    ``note`` is a smaller line below. Nodes that follow each other with the same ``group`` stand in
    one panel with that title. ``reads`` names earlier nodes; where their order matters
    (``ordered``), their wires arrive from left to right. ``formula`` is told in texts alone. What
    is not ``live`` has no effect on the output and is drawn pale.
    """

    name: str
    label: str
    note: str = ""
    kind: Kind = "operation"
    group: str = ""
    reads: tuple[str, ...] = ()
    ordered: bool = False
    formula: str = ""
    live: bool = True


@dataclass(frozen=True)
class Description:
    """An architecture over ``features``: its size in a line, and its nodes.

    A node reads earlier ones only; the last node gives the logits. A feature may stand in several
    nodes, or in none where nothing reads it. ``facts`` are short remarks for the caption.
    Raises ValueError when names repeat or something later is read.
    """

    summary: str
    features: tuple[str, ...]
    nodes: tuple[Node, ...]
    facts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known: set[str] = set()
        for node in self.nodes:
            missing = [name for name in node.reads if name not in known]
            if missing or node.name in known:
                raise ValueError(
                    f"description: node {node.name!r}: expected a name of its own that reads "
                    f"earlier nodes, received reads {list(node.reads)} after {sorted(known)}"
                )
            known.add(node.name)

    def live_features(self) -> tuple[str, ...]:
        """Return the features that have an effect, in the order of ``features``."""
        live = {node.label for node in self.nodes if node.kind == "feature" and node.live}
        return tuple(name for name in self.features if name in live)


def feature_nodes(features: Iterable[str], live: Iterable[str]) -> list[Node]:
    """Return a node for each of ``features``, in a panel for each modality."""
    live = set(live)
    return [
        Node(name, name, kind="feature", group=modality_of(name), live=name in live)
        for name in features
    ]


def modality_of(feature: str) -> str:
    """Return the modality that a feature name such as ``image.1`` begins with."""
    return feature.partition(".")[0]


def leaf_nodes(reads: Iterable[str]) -> list[Node]:
    """Return a leaf for each time that a feature is read, the names of repeated ones numbered."""
    nodes, seen = [], Counter[str]()
    for name in reads:
        seen[name] += 1
        own = name if seen[name] == 1 else f"{name} ({seen[name]})"
        nodes.append(Node(own, name, kind="feature"))
    return nodes
