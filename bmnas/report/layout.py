"""The drawing of a whole genotype: features below, Cells above each other, the head on top.

Wires from features to later Cells rise in lanes left of the Cells, those from Cells to later
Cells and to the head in lanes right of them; between the rows lies one track for each wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from bmnas.machine.errors import UserError
from bmnas.report.cell_layout import CellSheet, cell_sheet
from bmnas.report.geometry import Box, Label, Point, Sheet, Wire
from bmnas.report.lettering import NAME_LIMIT, Measure, shortened, wrapped
from bmnas.report.style import GREY, INK, modality_colours, modality_of
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.operations import OPERATIONS

_MARGIN = 0.15
_TRACK = 0.14  # between two wires side by side
_CLEAR = 0.2  # from a row to the nearest track
_FEATURE_HEIGHT = 0.32
_GROUP_NAME = 0.26
_HEAD = (0.5, 0.42)  # height, and the room above it for the output


def layout(genotype: Genotype, measure: Measure) -> Sheet:
    """Place everything that a drawing of ``genotype`` shows on one sheet.

    Raises UserError when it has more Cells, steps or features than a picture can show.
    """
    sizes = (
        ("Cells", len(genotype.cells), 32),
        ("steps in a Cell", max(len(cell.steps) for cell in genotype.cells), 16),
        ("features", len(genotype.features), 100),
    )
    for what, count, limit in sizes:
        if count > limit:
            raise UserError(
                f"drawing: received {count:,} {what}, expected at most {limit}; "
                "`bmnas show` without --out prints it as text"
            )
    plan = _Plan(genotype, measure)
    plan.draw_features()
    plan.draw_cells()
    plan.draw_feature_wires()
    plan.draw_cell_wires()
    plan.draw_head()
    return plan.sheet


class _Plan:
    """The places of rows, lanes and tracks; the methods fill ``sheet`` in this order."""

    def __init__(self, genotype: Genotype, measure: Measure) -> None:
        self.genotype, self.measure = genotype, measure
        self.colours = modality_colours(genotype.features)
        self.cells = [self._cell(k) for k in range(len(genotype.cells))]
        self.targets = _targets(genotype)
        self.left_lanes = self._left_lanes()
        row = self._feature_widths()
        self.row_width = sum(row.values()) + _group_room(genotype.features)
        cell_width = max(cell.sheet.width for cell in self.cells)
        left_room = _TRACK * len(self.left_lanes) + (0.12 if self.left_lanes else 0)
        self.right_room = 0.2 + _TRACK * len(self.cells) if len(self.cells) > 1 else 0.0
        body = left_room + cell_width + self.right_room
        width = max(self.row_width, body, 3.2) + 2 * _MARGIN
        self.sheet = Sheet(width=width)
        self.cells_left = (width - body) / 2 + left_room
        self.cells_right = self.cells_left + cell_width
        self.caption = wrapped(_caption(genotype), width - 2 * _MARGIN, 7, measure)
        self.features_bottom = _MARGIN + 0.15 * len(self.caption) + 0.08
        self.features_top = self.features_bottom + _GROUP_NAME + _FEATURE_HEIGHT + 0.16
        self._place_features(row)
        self._place_cells()

    def _cell(self, k: int) -> CellSheet:
        cell = self.genotype.cells[k]
        x, y = (self._net_colour(name) for name in cell.inputs)
        return cell_sheet(cell, f"Cell {k + 1}", (x, y))

    def _net_colour(self, name: str) -> str:
        return self.colours.get(modality_of(name), INK) if "." in name else INK

    def _left_lanes(self) -> dict[str, float]:
        """Number the features that later Cells read: 0 is the lane next to the Cells.

        A wire that goes further up stands further out, so that it crosses no other lane; of
        two that end at one Cell, that to x.
        """
        highest = {
            name: max((k, -operand) for k, operand in self.targets[name])
            for name in self.genotype.features
            if any(k > 0 for k, _ in self.targets[name])
        }
        order = sorted(highest, key=lambda name: highest[name])
        return {name: n for n, name in enumerate(order)}

    def _feature_widths(self) -> dict[str, float]:
        return {name: self.measure(shortened(name), 8.5) + 0.24 for name in self.genotype.features}

    def _lane(self, name: str) -> float:
        return self.cells_left - 0.12 - _TRACK * self.left_lanes[name]

    def _right_lane(self, j: int) -> float:
        return self.cells_right + 0.2 + _TRACK * (len(self.cells) - 2 - j)

    def _place_features(self, widths: dict[str, float]) -> None:
        """Fix where each feature stands, a little aside where a wire would meet another."""
        x = (self.sheet.width - self.row_width) / 2
        self.feature_left: dict[str, float] = {}
        for _, names in groupby(self.genotype.features, modality_of):
            x += 0.1
            for name in names:
                self.feature_left[name] = x
                x += widths[name] + 0.08
            x += 0.1 - 0.08 + 0.14
        self.feature_width = widths
        fixed = [self.cells_left + self.cells[0].inputs[a][0] for a in (0, 1)]
        fixed += [self._lane(name) for name in self.left_lanes]
        tops = [self._feature_top(name)[0] for name in self.genotype.features]
        shifts = sorted((s * 0.02 for s in range(-6, 7)), key=lambda s: (abs(s), s))
        gaps = {s: min(abs(top + s - x) for top in tops for x in fixed) for s in shifts}
        best = next((s for s in shifts if gaps[s] >= 0.06), max(shifts, key=lambda s: gaps[s]))
        self.feature_left = {name: x + best for name, x in self.feature_left.items()}

    def _feature_top(self, name: str) -> Point:
        y = self.features_bottom + _GROUP_NAME + _FEATURE_HEIGHT
        x: float = self.feature_left[name] + self.feature_width[name] / 2
        return x, y

    def _place_cells(self) -> None:
        """Fix the tracks below each Cell, and the height at which each Cell stands."""
        y = self.features_top
        self.tracks: list[dict[str, float]] = []
        self.bottoms: list[float] = []
        for k, cell in enumerate(self.cells):
            order = self._first_tracks() if k == 0 else self._tracks(k)
            self.tracks.append({net: y + _CLEAR + n * _TRACK for n, net in enumerate(order)})
            y += 2 * _CLEAR + _TRACK * max(0, len(order) - 1)
            self.bottoms.append(y)
            y += cell.sheet.height
        self.head_bottom = y + 0.38

    def _first_tracks(self) -> list[str]:
        """Order the tracks above the features, the lowest first: outer lanes, x, then y."""
        outer_first = sorted(self.left_lanes, key=lambda n: -self.left_lanes[n])
        return list(dict.fromkeys([*outer_first, *self.genotype.cells[0].inputs]))

    def _tracks(self, k: int) -> list[str]:
        """Order the tracks below Cell ``k`` (from 0), the lowest first.

        From the left, the wire to y passes below the one to x; from the right, above it.
        """
        x, y = self.genotype.cells[k].inputs
        x_from_left = x in self.left_lanes
        order = [y, x] if x_from_left and y in self.left_lanes else [x, y]
        previous = f"cell{k}"
        if previous not in order:
            order.insert(0, previous)
        return order

    def draw_features(self) -> None:
        """Draw a panel for each run of features of one modality, and the caption."""
        live = self.genotype.live_features()
        y = self.features_bottom + _GROUP_NAME
        for modality, names in groupby(self.genotype.features, modality_of):
            group = list(names)
            left = self.feature_left[group[0]] - 0.1
            right = self.feature_left[group[-1]] + self.feature_width[group[-1]] + 0.1
            colour = self.colours[modality]
            height = self.features_top - self.features_bottom
            self.sheet.boxes.append(
                Box("group", left, self.features_bottom, right - left, height, colour)
            )
            centre = (left + right) / 2
            name = _fit(modality, right - left - 0.1, 9, self.measure)
            at = self.features_bottom + 0.13
            self.sheet.labels.append(Label(centre, at, name, 9, bold=True, colour=colour))
            self.sheet.boxes += [
                Box(
                    "feature",
                    self.feature_left[feature],
                    y,
                    self.feature_width[feature],
                    _FEATURE_HEIGHT,
                    colour,
                    shortened(feature),
                    pale=feature not in live,
                )
                for feature in group
            ]
        for n, line in enumerate(reversed(self.caption)):
            at = _MARGIN + 0.06 + 0.15 * n
            self.sheet.labels.append(Label(self.sheet.width / 2, at, line, 7, colour=GREY))

    def draw_cells(self) -> None:
        """Draw the Cells where they stand."""
        for cell, bottom in zip(self.cells, self.bottoms, strict=True):
            self.sheet.place(cell.sheet, self.cells_left, bottom)

    def draw_feature_wires(self) -> None:
        """Draw a wire from each feature to each input of a Cell that takes it."""
        for name in self.genotype.features:
            x, top = self._feature_top(name)
            for k, operand in self.targets[name]:
                first = self.tracks[0][name]
                end = self._input(k, operand)
                points = [(x, top), (x, first)]
                if k > 0:
                    lane, track = self._lane(name), self.tracks[k][name]
                    points += [(lane, first), (lane, track)]
                points += [(end[0], points[-1][1]), end]
                self._wire(name, points, k, operand)

    def draw_cell_wires(self) -> None:
        """Draw a wire from each Cell to the Cells that take it and to the head."""
        for j in range(len(self.cells)):
            name, (x, y) = f"cell{j + 1}", self._output(j)
            if j + 1 == len(self.cells):
                self.sheet.wires.append(Wire(name, ((x, y), (x, self.head_bottom)), INK))
                continue
            lane, first = self._right_lane(j), self.tracks[j + 1][name]
            start = [(x, y), (x, first)]
            self.sheet.wires.append(
                Wire(name, (*start, (lane, first), (lane, self.head_bottom)), INK)
            )
            for k, operand in self.targets[name]:
                end = self._input(k, operand)
                points = list(start)
                if k > j + 1:
                    points += [(lane, first), (lane, self.tracks[k][name])]
                points += [(end[0], points[-1][1]), end]
                self._wire(name, points, k, operand)

    def draw_head(self) -> None:
        """Draw the box that joins the outputs of all Cells and gives the logits."""
        left, right = self.cells_left, self.cells_right + self.right_room
        y = self.head_bottom
        joined = "Concat, " if len(self.cells) > 1 else ""
        note = f"{joined}LayerNorm, ReLU, flatten, linear"
        self.sheet.boxes.append(
            Box("head", left, y, right - left, _HEAD[0], INK, "Classifier head", note)
        )
        middle, top = (left + right) / 2, y + _HEAD[0]
        self.sheet.wires.append(Wire("head", ((middle, top), (middle, top + 0.26)), INK))
        self.sheet.labels.append(Label(middle + 0.08, top + 0.18, "logits", 8, "left"))
        self.sheet.height = top + _HEAD[1]

    def _wire(self, name: str, points: Sequence[Point], k: int, operand: int) -> None:
        pale = operand == 1 and not self.genotype.cells[k].reads_y()
        self.sheet.wires.append(Wire(name, tuple(points), self._net_colour(name), pale))

    def _input(self, k: int, operand: int) -> Point:
        x, y = self.cells[k].inputs[operand]
        return self.cells_left + x, self.bottoms[k] + y

    def _output(self, j: int) -> Point:
        x, y = self.cells[j].output
        return self.cells_left + x, self.bottoms[j] + y


def _targets(genotype: Genotype) -> dict[str, list[tuple[int, int]]]:
    """Return for each node the Cells (from 0) that take it, and as which input (0 x, 1 y)."""
    names = [*genotype.features, *(f"cell{k + 1}" for k in range(len(genotype.cells)))]
    targets: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for k, cell in enumerate(genotype.cells):
        for operand, name in enumerate(cell.inputs):
            targets[name].append((k, operand))
    return targets


def _group_room(features: Sequence[str]) -> float:
    groups = sum(1 for _ in groupby(features, modality_of))
    return 0.08 * (len(features) - groups) + 0.2 * groups + 0.14 * (groups - 1)


def _fit(text: str, width: float, size: float, measure: Measure) -> str:
    """Return ``text``, cut with an ellipsis where it is wider than ``width`` inches."""
    for keep in range(min(len(text), NAME_LIMIT), 0, -1):
        shown = text if keep == len(text) else f"{text[:keep]}…"
        if measure(shown, size) <= width:
            return shown
    return ""


def _caption(genotype: Genotype) -> list[str]:
    facts = [f"C = {genotype.channels}, L = {genotype.length}"]
    facts.append("x, y: first and second input")
    if any(OPERATIONS[step.op].is_zero for cell in genotype.cells for step in cell.steps):
        facts.append("dashed: dropped (zero)")
    if len(genotype.live_features()) < len(genotype.features):
        facts.append("pale: features not used")
    return facts
