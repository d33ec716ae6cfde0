"""When two genotypes are the same network: a name that isomorphic genotypes share.

Two genotypes are isomorphic when one becomes the other by what changes no function, the weights
going along: another order of steps or Cells that do not read each other, the operands of a
symmetric operation swapped, ``zero`` steps dropped, and a second input that no step reads. Networks
whose weights could imitate each other, but are trained from other starting points, such as two
sums of the same inputs and one, are different.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.operations import OPERATIONS

_DEAD = "0"  # the output of a zero step


def canonical(genotype: Genotype) -> str:
    """Return the name of the network, one for all isomorphic genotypes.

    Such as ``image.2,audio.3:[attention(x,y) sum(x,1)]``: a Cell reads two inputs and joins what is
    in brackets; numbers stand for its steps and ``0`` for a ``zero`` step. Cells are joined by
    ``;`` and called ``cell1``, …. Channels, length and features that no Cell names are left out.
    """
    cells = [_cell(cell) for cell in genotype.cells]
    before = {k: _cells_read(cell) for k, cell in enumerate(genotype.cells)}
    names = []
    for order in _orders(before):
        number = {f"cell{k + 1}": f"cell{place + 1}" for place, k in enumerate(order)}
        names.append(";".join(_named(genotype.cells[k], cells[k], number) for k in order))
    return min(names)


def _named(cell: Cell, steps: str, number: Mapping[str, str]) -> str:
    read = cell.inputs if cell.reads_y() else cell.inputs[:1]
    return f"{','.join(number.get(name, name) for name in read)}:{steps}"


def _cell(cell: Cell) -> str:
    """Return the smallest of the ways to write a Cell's steps."""
    live = cell.live_steps()
    if not live:
        return "x"
    before = {m: _steps_read(cell.steps[m], live) for m in live}
    texts = []
    for order in _orders(before):
        number = {f"step{m + 1}": str(place + 1) for place, m in enumerate(order)}
        texts.append(" ".join(_step(cell.steps[m], number) for m in order))
    # A Cell of several steps merges their outputs by a layer, however few are left.
    return f"[{min(texts)}]" if len(cell.steps) > 1 else min(texts)


def _step(step: Step, number: Mapping[str, str]) -> str:
    known = {"x": "x", "y": "y", **number}
    first, second = (known.get(name, _DEAD) for name in step.inputs)
    if OPERATIONS[step.op].symmetric and second < first:
        first, second = second, first
    return f"{step.op}({first},{second})"


def _steps_read(step: Step, live: Sequence[int]) -> set[int]:
    return {m for m in live if f"step{m + 1}" in step.inputs}


def _cells_read(cell: Cell) -> set[int]:
    read = cell.inputs if cell.reads_y() else cell.inputs[:1]
    return {int(name.removeprefix("cell")) - 1 for name in read if "." not in name}


def _orders(before: Mapping[int, set[int]]) -> Iterator[tuple[int, ...]]:
    """Yield the orders in which every node comes after those that it reads."""
    for order in permutations(before):
        place = {node: number for number, node in enumerate(order)}
        if all(place[read] < place[node] for node in before for read in before[node]):
            yield order
