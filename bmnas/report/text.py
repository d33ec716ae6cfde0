"""An architecture in plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from bmnas.spaces.architecture import Architecture
from bmnas.spaces.description import Description, Node, modality_of
from bmnas.spaces.registry import describe


def genotype_text(genotype: Architecture) -> str:
    """Return the architecture as lines of text, see ``description_text``."""
    return description_text(describe(genotype))


def description_text(description: Description) -> str:
    """Return an architecture as aligned lines of text, without colour codes.

    The features come first, by modality, those that nothing reads in parentheses; then each group
    of nodes, a line a node; then the output, below it what it reads that is in no group.
    """
    nodes = {node.name: node for node in description.nodes}
    lines = [description.summary, ""]
    if description.features:
        lines += [*_features(description), ""]
    for group, members in groupby(description.nodes, lambda node: node.group):
        own = list(members)
        if group and own[0].kind != "feature":
            lines += [group, *_group(own), ""]
    return "\n".join([*lines, *_tree(description.nodes[-1], nodes, " → logits"), ""])


def _features(description: Description) -> list[str]:
    live = description.live_features()
    groups = [(name, list(names)) for name, names in groupby(description.features, modality_of)]
    width = max(len(name) for name, _ in groups)
    lines = [
        f"{name:<{width}}  " + "  ".join(name if name in live else f"({name})" for name in names)
        for name, names in groups
    ]
    note = "" if len(live) == len(description.features) else "  (in parentheses: not used)"
    return [f"Features{note}", *_branches(lines)]


def _group(members: Sequence[Node]) -> list[str]:
    """Return a line a node: its name, its label with what it reads, its formula."""
    rows = []
    for node in members:
        reads = ", ".join(_short(source) for source in node.reads)
        call = reads if node.kind == "input" else f"{node.label}({reads})"
        dead = "not read" if node.kind == "input" and not node.live else ""
        rows.append((_short(node.name), call, node.formula or dead))
    names, calls = (max(len(row[n]) for row in rows) for n in (0, 1))
    return _branches([f"{n:<{names}} = {c:<{calls}}  {f}".rstrip() for n, c, f in rows])


def _tree(node: Node, nodes: Mapping[str, Node], end: str = "") -> list[str]:
    """Return a line for ``node``, below it those that it reads, as far as they are in no group."""
    if node.group:
        return [_short(node.name)]
    lines = [f"{node.label}  {node.note}{end}".rstrip()]
    for n, source in enumerate(node.reads):
        last = n + 1 == len(node.reads)
        first, *rest = _tree(nodes[source], nodes)
        lines += [f"{'└─' if last else '├─'} {first}"]
        lines += [f"{' ' if last else '│'}  {line}" for line in rest]
    return lines


def _branches(lines: Sequence[str]) -> list[str]:
    return [f"├─ {line}" for line in lines[:-1]] + [f"└─ {line}" for line in lines[-1:]]


def _short(name: str) -> str:
    return name.rpartition("/")[2]
