"""The inside of a Cell as a drawing: its inputs, its steps from left to right, its output.

The steps stand in one row. Lanes above and below the row carry x, y and the outputs of steps
past the steps that do not read them, so that no wire runs through a box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product

from bmnas.report.geometry import Box, Label, Point, Sheet, Wire, crossings
from bmnas.report.style import GREY, INK, PALE, PANEL
from bmnas.spaces.cells.genotype import Cell
from bmnas.spaces.cells.operations import OPERATIONS

PORT_RADIUS = 0.09
_PORT_X = {"x": 0.24, "y": 0.52}
_STEP = (1.2, 0.46)
_FIRST = 0.62  # where the gutter of the first step begins
_GUTTER = 0.52  # in front of each step: room for the turns of its wires
_RISER = 0.11  # in a gutter: where the step before turns into its lane
_TAPS = (0.22, 0.33)  # in a gutter: where lanes turn to the step behind
_OPERAND_Y = (0.11, -0.11)
_LANE = 0.15
_CLEAR = 0.16  # from a step to the nearest lane
_BAR = 0.25
_EFFORT = 3000  # lane orders that are tried, times steps cubed; three steps have 12 orders


@dataclass(frozen=True)
class CellSheet:
    """A drawn Cell: where the wires to its inputs x and y end and its output begins."""

    sheet: Sheet
    inputs: tuple[Point, Point]
    output: Point


def cell_sheet(cell: Cell, title: str, colours: tuple[str, str]) -> CellSheet:
    """Draw ``cell`` with the fewest crossings; ``colours`` are those of x and y."""
    candidates = (_Plan(cell, lanes, colours) for lanes in _lane_orders(cell))
    best = min(candidates, key=lambda plan: plan.cost())
    return best.finish(title)


def _lane_orders(cell: Cell) -> Iterator[dict[str, float]]:
    """Yield the height of the lane of each net for each order of the lanes.

    x has the outermost lane above, because only it goes past the concatenation.
    """
    steps = _nets_with_lane(cell)
    orders = (
        (above, below)
        for sides in product("-+", repeat=len(steps))
        for above in permutations([s for s, side in zip(steps, sides, strict=True) if side == "+"])
        for below in permutations(
            ["y", *(s for s, side in zip(steps, sides, strict=True) if side == "-")]
        )
    )
    start = _STEP[1] / 2 + _CLEAR
    for above, below in islice(orders, max(1, _EFFORT // len(cell.steps) ** 3)):
        yield {name: start + n * _LANE for n, name in enumerate((*above, "x"))} | {
            name: -start - n * _LANE for n, name in enumerate(below)
        }


def _nets_with_lane(cell: Cell) -> list[str]:
    """Return the steps whose output goes further than to the very next box."""
    live, last = cell.live_steps(), len(cell.steps) - 1
    return [
        f"step{m + 1}"
        for m in range(last)
        if m in live or any(f"step{m + 1}" in step.inputs for step in cell.steps[m + 2 :])
    ]


class _Plan:
    """One choice of lanes for a Cell, drawn with the row of steps at height 0."""

    def __init__(self, cell: Cell, lanes: dict[str, float], colours: Sequence[str]) -> None:
        self.cell, self.lanes = cell, lanes
        self.colours = dict(zip(("x", "y"), colours, strict=True))
        self.live = {f"step{m + 1}" for m in cell.live_steps()}
        count = len(cell.steps)
        self.lefts = [_FIRST + _GUTTER + m * (_STEP[0] + _GUTTER) for m in range(count)]
        end = self.lefts[-1] + _STEP[0]
        self.concat = end + 0.36 if count > 1 else None
        self.add = end + 0.36 if self.concat is None else self.concat + _BAR + 0.32
        self.bottom = min(-0.4, min(lanes.values()) - 0.04)
        self.wires = [*self._operand_wires(), *self._output_wires()]

    def cost(self) -> tuple[int, float]:
        """Return the number of crossings and the total height of the lanes used."""
        drawn = sum(abs(a[1] - b[1]) for wire in self.wires for a, b in wire.segments())
        return crossings(self.wires), round(drawn, 6)

    def finish(self, title: str) -> CellSheet:
        """Return the whole Cell with its lower left corner at (0, 0)."""
        top = self.lanes["x"] + 0.12
        ceiling, floor = top + 0.3, self.bottom - 0.14
        width = self.add + _BAR + 0.2
        inside = Sheet(wires=self.wires)
        inside.boxes.append(Box("cell", 0, floor, width, ceiling - floor, PANEL))
        inside.labels.append(Label(0.13, ceiling - 0.16, title, 9, "left", bold=True))
        self._draw_ports(inside)
        self._draw_steps(inside)
        if self.concat is not None:
            height = self.lanes["x"] - 0.1 - self.bottom
            pale = not self.live
            inside.boxes.append(
                Box("bar", self.concat, self.bottom, _BAR, height, INK, "Concat", pale=pale)
            )
        inside.boxes.append(
            Box("bar", self.add, self.bottom, _BAR, top - self.bottom, INK, "Add & Norm")
        )
        sheet = Sheet(width, ceiling - floor)
        sheet.place(inside, 0, -floor)
        ends = [(x, self.lanes[name] - PORT_RADIUS - floor) for name, x in _PORT_X.items()]
        return CellSheet(sheet, (ends[0], ends[1]), (self.add + _BAR / 2, top - floor))

    def _draw_ports(self, sheet: Sheet) -> None:
        for name, x in _PORT_X.items():
            pale = name == "y" and not self.cell.reads_y()
            size = 2 * PORT_RADIUS
            corner = (x - PORT_RADIUS, self.lanes[name] - PORT_RADIUS)
            sheet.boxes.append(
                Box("port", *corner, size, size, self.colours[name], name, pale=pale)
            )

    def _draw_steps(self, sheet: Sheet) -> None:
        for m, (step, left) in enumerate(zip(self.cell.steps, self.lefts, strict=True)):
            pale = OPERATIONS[step.op].is_zero
            name = OPERATIONS[step.op].label
            box = Box("step", left, -_STEP[1] / 2, *_STEP, INK, name, f"step {m + 1}", pale)
            sheet.boxes.append(box)
            colour = PALE if pale else GREY
            sheet.labels += [
                Label(left + 0.09, y, text, 6.5, italic=True, colour=colour)
                for text, y in zip("xy", _OPERAND_Y, strict=True)
            ]

    def _operand_wires(self) -> list[Wire]:
        wires = []
        for m, step in enumerate(self.cell.steps):
            left = self.lefts[m]
            taps = self._taps(m)
            for source, tap, height in zip(step.inputs, taps, _OPERAND_Y, strict=True):
                start = self._leave(source, m)
                turn = (left - _GUTTER + tap, start[-1][1])
                points = (*start, turn, (turn[0], height), (left, height))
                pale = OPERATIONS[step.op].is_zero or self._is_zero(source)
                wires.append(Wire(source, points, self._colour(source), pale))
        return wires

    def _taps(self, m: int) -> tuple[float, float]:
        """Return where the two operands of step ``m`` turn, such that they do not cross.

        When both come from above, the lower operand has to pass left of the upper one.
        """
        heights = [self._height(source, m) for source in self.cell.steps[m].inputs]
        both_above = min(heights) > 0 or (heights[0] > 0 and heights[1] == 0)
        return (_TAPS[1], _TAPS[0]) if both_above else _TAPS

    def _height(self, source: str, m: int) -> float:
        return 0.0 if source == f"step{m}" else self.lanes[source]

    def _leave(self, source: str, m: int) -> tuple[Point, ...]:
        """Return the beginning of a wire from ``source`` to the gutter of step ``m``."""
        if source in _PORT_X:
            return ((_PORT_X[source] + PORT_RADIUS, self.lanes[source]),)
        begin = self.lefts[int(source.removeprefix("step")) - 1] + _STEP[0]
        if source == f"step{m}":
            return ((begin, 0.0),)
        riser = begin + _RISER
        return ((begin, 0.0), (riser, 0.0), (riser, self.lanes[source]))

    def _output_wires(self) -> list[Wire]:
        count = len(self.cell.steps)
        into = self.add if self.concat is None else self.concat
        wires = []
        for m in self.cell.live_steps():
            name = f"step{m + 1}"
            start = self._leave(name, m + 1 if m == count - 1 else count + 1)
            wires.append(Wire(name, (*start, (into, start[-1][1])), INK))
        x = self.lanes["x"]
        wires.append(Wire("x", ((_PORT_X["x"] + PORT_RADIUS, x), (self.add, x)), self.colours["x"]))
        if self.concat is not None and self.live:
            wires.append(Wire("concat", ((self.concat + _BAR, 0.0), (self.add, 0.0)), INK))
        return wires

    def _is_zero(self, source: str) -> bool:
        return source not in _PORT_X and source not in self.live

    def _colour(self, source: str) -> str:
        return self.colours.get(source, INK)
