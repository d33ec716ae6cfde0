"""A genotype drawn in plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from bmnas.report.style import modality_of
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Cell, Genotype
from bmnas.spaces.cells.operations import OPERATIONS
from bmnas.spaces.description import Node
from bmnas.spaces.registry import describe


def genotype_text(genotype: Architecture) -> str:
    """Return the architecture as aligned lines of text, without colour codes.

    The features come first, by modality, those that nothing reads in parentheses; then each
    Cell with its inputs, steps and output; then the head. Of another space, the tree of nodes.
    """
    lines = [genotype.summary(), "", *_features(genotype), ""]
    if isinstance(genotype, Genotype):
        lines += _cells(genotype)
    else:
        shown = describe(genotype)
        nodes = {node.name: node for node in shown.nodes}
        lines += _tree(shown.nodes[-1].name, nodes)
    return "\n".join([*lines, ""])


def _tree(name: str, nodes: Mapping[str, Node]) -> list[str]:
    """Return a line a node, those that it reads below it."""
    node = nodes[name]
    lines = [f"{node.label}  {node.note}".rstrip()]
    for n, child in enumerate(node.reads):
        last = n + 1 == len(node.reads)
        first, *rest = _tree(child, nodes)
        lines.append(f"{_branch(n, len(node.reads))} {first}")
        lines += [f"{' ' if last else '│'}  {line}" for line in rest]
    return lines


def _cells(genotype: Genotype) -> list[str]:
    lines = []
    for k, cell in enumerate(genotype.cells):
        lines += [*_cell(cell, k + 1), ""]
    outputs = ", ".join(f"cell{k + 1}" for k in range(len(genotype.cells)))
    joined = f"concat({outputs})" if len(genotype.cells) > 1 else outputs
    return [*lines, "Head", f"└─ {joined} → LayerNorm → ReLU → flatten → linear → logits"]


def _features(genotype: Architecture) -> list[str]:
    live = genotype.live_features()
    groups = [(name, list(names)) for name, names in groupby(genotype.features, modality_of)]
    width = max((len(name) for name, _ in groups), default=0)
    lines = [
        f"{_branch(n, len(groups))} {name:<{width}}  "
        + "  ".join(feature if feature in live else f"({feature})" for feature in names)
        for n, (name, names) in enumerate(groups)
    ]
    note = "" if len(live) == len(genotype.features) else "  (in parentheses: not used)"
    return [f"Features{note}", *lines]


def _cell(cell: Cell, number: int) -> list[str]:
    rows = [("x", cell.inputs[0], ""), ("y", cell.inputs[1], "" if cell.reads_y() else "not read")]
    zeros = {f"step{m + 1}" for m, step in enumerate(cell.steps) if OPERATIONS[step.op].is_zero}
    for m, step in enumerate(cell.steps):
        operands = ", ".join(step.inputs)
        # The output of a zero step is 0 wherever it is read (Eq. 4).
        formula = OPERATIONS[step.op].formula.format(
            *("0" if n in zeros else n for n in step.inputs)
        )
        rows.append((f"step{m + 1}", f"{OPERATIONS[step.op].label}({operands})", formula))
    rows.append((f"cell{number}", _output(cell), ""))
    names = max(len(name) for name, _, _ in rows)
    calls = max(len(call) for _, call, formula in rows if formula or call in cell.inputs)
    return [
        f"Cell {number}",
        *(
            f"{_branch(n, len(rows))} {name:<{names}} = {call:<{calls}}  {formula}".rstrip()
            for n, (name, call, formula) in enumerate(rows)
        ),
    ]


def _output(cell: Cell) -> str:
    live = [f"step{m + 1}" for m in cell.live_steps()]
    if not live:
        return "LayerNorm(x)"
    if len(cell.steps) == 1:
        return f"LayerNorm(x + {live[0]})"
    return f"LayerNorm(x + ReLU(linear(concat({', '.join(live)}))))"


def _branch(n: int, count: int) -> str:
    return "└─" if n + 1 == count else "├─"
