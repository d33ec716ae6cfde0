"""Cells as a drawing shows them (BM-NAS, Figure 5): ports x and y, steps, output."""

from __future__ import annotations

from bmnas.spaces.cells.genotype import Cell, Genotype
from bmnas.spaces.cells.operations import OPERATIONS
from bmnas.spaces.description import Description, Node, feature_nodes


def describe_cells(genotype: Genotype) -> Description:
    """Return the features, a group of nodes for each Cell, and the head."""
    nodes = feature_nodes(genotype.features, genotype.live_features())
    for number, cell in enumerate(genotype.cells, start=1):
        nodes += _cell_nodes(cell, number)
    cells = tuple(f"cell{k + 1}" for k in range(len(genotype.cells)))
    note = "LayerNorm, ReLU, flatten, linear"
    note = f"concat, {note}" if len(cells) > 1 else note
    nodes.append(Node("head", "Classifier head", note, "output", reads=cells))
    facts = (
        f"C = {genotype.channels}, L = {genotype.length}",
        "inputs of a step: left to right where order counts",
    )
    return Description(genotype.summary(), genotype.features, tuple(nodes), facts)


def _cell_nodes(cell: Cell, number: int) -> list[Node]:
    name, group = f"cell{number}", f"Cell {number}"
    nodes = [
        Node(f"{name}/{port}", port, kind="input", group=group, reads=(source,), live=live)
        for port, source, live in zip("xy", cell.inputs, (True, cell.reads_y()), strict=True)
    ]
    live_steps = cell.live_steps()
    zeros = {f"step{m + 1}" for m in range(len(cell.steps)) if m not in live_steps}
    for m, step in enumerate(cell.steps):
        operation = OPERATIONS[step.op]
        # The output of a zero step is 0 wherever it is read (Eq. 4).
        operands = ["0" if source in zeros else source for source in step.inputs]
        nodes.append(
            Node(
                f"{name}/step{m + 1}",
                operation.label,
                f"step {m + 1}",
                group=group,
                reads=tuple(f"{name}/{source}" for source in step.inputs),
                ordered=not operation.symmetric,
                formula=operation.formula.format(*operands),
                live=m in live_steps,
            )
        )
    steps = tuple(f"step{m + 1}" for m in live_steps)
    reads = tuple(f"{name}/{source}" for source in ("x", *steps))
    note, formula = _output(steps, len(cell.steps))
    nodes.append(Node(name, "Add & Norm", note, group=group, reads=reads, formula=formula))
    return nodes


def _output(live_steps: tuple[str, ...], steps: int) -> tuple[str, str]:
    """Return how the output of a Cell is computed, in a picture and in a text."""
    if not live_steps:
        return "", "LayerNorm(x)"
    if steps == 1:
        return "", f"LayerNorm(x + {live_steps[0]})"
    joined = ", ".join(live_steps)
    return "x + ReLU(linear(concat))", f"LayerNorm(x + ReLU(linear(concat({joined}))))"
