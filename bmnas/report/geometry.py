"""Boxes, wires and labels of a drawing as plain data; lengths in inches, y upwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise, permutations
from typing import Literal

Point = tuple[float, float]
BoxKind = Literal["group", "feature", "cell", "step", "bar", "head", "port"]


@dataclass(frozen=True)
class Box:
    """A rounded rectangle with its lower left corner at (x, y); a port is drawn as a disk."""

    kind: BoxKind
    x: float
    y: float
    width: float
    height: float
    colour: str
    label: str = ""
    note: str = ""
    pale: bool = False

    @property
    def centre(self) -> Point:
        """The middle of the box."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Wire:
    """An edge drawn as horizontal and vertical lines through ``points``.

    Wires of one ``net`` have one source and may lie on each other; ``arrow`` puts a head
    at the last point.
    """

    net: str
    points: tuple[Point, ...]
    colour: str
    pale: bool = False
    arrow: bool = True

    def segments(self) -> list[tuple[Point, Point]]:
        """Return the straight pieces that have a length."""
        return [(a, b) for a, b in pairwise(self.points) if not _same(a, b)]

    def turns(self) -> list[tuple[Point, Point]]:
        """Return the points at which the direction changes, each with the point after it."""
        pieces = self.segments()
        return [
            (corner, after)
            for (before, corner), (_, after) in pairwise(pieces)
            if (abs(before[0] - corner[0]) < 1e-6) != (abs(corner[0] - after[0]) < 1e-6)
        ]


@dataclass(frozen=True)
class Label:
    """A line of text at (x, y), which is its ``align`` end and the middle of its height."""

    x: float
    y: float
    text: str
    size: float
    align: Literal["left", "center", "right"] = "center"
    bold: bool = False
    italic: bool = False
    colour: str = "#2B3640"


@dataclass
class Sheet:
    """A drawing under construction: what lies on it, and how large it is."""

    width: float = 0.0
    height: float = 0.0
    boxes: list[Box] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    def place(self, other: Sheet, dx: float, dy: float) -> None:
        """Put everything on ``other`` onto this sheet, moved by (dx, dy)."""
        self.boxes += [replace(box, x=box.x + dx, y=box.y + dy) for box in other.boxes]
        self.labels += [replace(text, x=text.x + dx, y=text.y + dy) for text in other.labels]
        self.wires += [
            replace(wire, points=tuple((x + dx, y + dy) for x, y in wire.points))
            for wire in other.wires
        ]


def crossings(wires: Sequence[Wire]) -> int:
    """Count the places where wires of different nets cross or lie on each other."""
    return sum(
        _meet(first, second)
        for a, b in combinations(wires, 2)
        if a.net != b.net
        for first in a.segments()
        for second in b.segments()
    )


def junctions(wires: Sequence[Wire]) -> list[tuple[Point, str]]:
    """Return the points, with their colour, where a wire leaves another of its net.

    Such a point is a turn of one wire that lies inside a straight piece of another, or is a
    turn of the other in another direction.
    """
    found: dict[Point, str] = {}
    solid = [wire for wire in wires if not wire.pale]
    for wire, other in permutations(solid, 2):
        if wire.net != other.net:
            continue
        for corner, after in wire.turns():
            apart = any(
                _same(corner, point) and not _same_way(corner, after, leads_to)
                for point, leads_to in other.turns()
            )
            if apart or any(_inside(corner, *piece) for piece in other.segments()):
                found[(round(corner[0], 4), round(corner[1], 4))] = wire.colour
    return list(found.items())


def _same(a: Point, b: Point) -> bool:
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) < 1e-6


def _same_way(corner: Point, one: Point, two: Point) -> bool:
    """Tell whether both points lie in the same of the four directions from ``corner``."""
    ways = [(_sign(point[0] - corner[0]), _sign(point[1] - corner[1])) for point in (one, two)]
    return ways[0] == ways[1]


def _sign(value: float) -> int:
    return (value > 1e-6) - (value < -1e-6)


def _inside(point: Point, a: Point, b: Point) -> bool:
    along = 1 if abs(a[0] - b[0]) < 1e-6 else 0
    low, high = sorted((a[along], b[along]))
    aside = abs(point[1 - along] - a[1 - along])
    return aside < 1e-6 and low + 1e-6 < point[along] < high - 1e-6


def _meet(first: tuple[Point, Point], second: tuple[Point, Point]) -> bool:
    near = 1e-6
    spans = []
    for axis in (0, 1):
        one = sorted((first[0][axis], first[1][axis]))
        two = sorted((second[0][axis], second[1][axis]))
        spans.append(min(one[1], two[1]) - max(one[0], two[0]))
    return min(spans) > -near
