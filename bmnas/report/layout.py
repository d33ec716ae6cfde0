"""Where the nodes of a description stand, and how its wires run: a layered drawing.

Each node stands in a row above all that it reads. A wire runs straight up past a row, in a lane,
and bends between two rows only, so it meets no box. The order in the rows is one with few
crossings; a linear program then makes the wires straight. Lengths are in inches, y upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, chain, groupby, pairwise
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.spaces.description import Description, Node

Point = tuple[float, float]

_LIMIT = 300  # nodes
_PAD = 0.14  # between a panel and what stands in it
_TITLE = 0.3
_GAP = 0.2  # between neighbours in a row
_SWEEPS = 3  # through the orders that are tried


class Box(NamedTuple):
    """A rectangle with its lower left corner at (x, y)."""

    x: float
    y: float
    width: float
    height: float


class Panel(NamedTuple):
    """The frame of a group; its title stands below where no wire enters there."""

    title: str
    box: Box
    title_below: bool


class Wire(NamedTuple):
    """A connection between two nodes; from each of its points to the next it bends or is upright.

    It is ``live`` when what it carries has an effect.
    """

    source: Node
    target: Node
    points: tuple[Point, ...]
    live: bool


class _Link(NamedTuple):
    """The piece of a wire of ``source`` from ``row`` to the next, between nodes or lanes."""

    row: int
    source: str
    lower: str
    upper: str


class Layout:
    """The boxes of the nodes by name, panels and wires, from (0, 0) to (width, height).

    A part is a panel with its nodes, or a node without one. A lane is named ``|`` and the node
    whose wire runs there, the edges of a panel ``[`` and ``]`` and the number of the part.
    Raises UserError when the description has more nodes than a picture can show.
    """

    def __init__(self, description: Description) -> None:
        if len(description.nodes) > _LIMIT:
            raise UserError(
                f"drawing: received {len(description.nodes):,} nodes, expected at most {_LIMIT}; "
                "`bmnas show` without --out prints it as text"
            )
        self.nodes = {node.name: node for node in description.nodes}
        self._sizes = {node.name: _size(node) for node in description.nodes}
        alike = groupby(description.nodes, lambda node: (node.group, node.group or node.name))
        self._parts = [[node.name for node in nodes] for _, nodes in alike]
        self._part = {name: n for n, part in enumerate(self._parts) for name in part}
        self._row = self._rows()
        self._count = 1 + max(self._row.values())
        self._spans = {
            n: [min(rows), max(rows)]
            for n, part in enumerate(self._parts)
            if self.nodes[part[0]].group and (rows := [self._row[name] for name in part])
        }
        self._links = list(dict.fromkeys(self._all_links()))
        self._order = self._fewest_crossings(self._first_order())
        self._entry = dict(self._entries())
        self._x = self._places()
        self._bottom, self._base, self._top = self._heights()
        self.height = self._top[-1]
        self.boxes = {
            name: Box(self._x[name] - width / 2, self._base[self._row[name]], width, height)
            for name, (width, height) in self._sizes.items()
        }
        self.panels = [self._panel(n, *span) for n, span in self._spans.items()]
        self.wires = [
            self._wire(self.nodes[source], node)
            for node in description.nodes
            for source in dict.fromkeys(node.reads)
        ]
        self.width = max(x + self._half(name) for name, x in self._x.items())

    def _rows(self) -> dict[str, int]:
        """Return the row of each node; a panel begins where all panels below it have ended."""
        inner: dict[str, int] = {}  # the row within the part
        levels: list[int] = []
        for n, part in enumerate(self._parts):
            level = 0
            for name in part:
                reads = self.nodes[name].reads
                inner[name] = max((inner[s] + 1 for s in reads if self._part[s] == n), default=0)
                below = [levels[self._part[s]] for s in reads if self._part[s] < n]
                level = max([level, *(other + 1 for other in below)])
            # What leaves a panel stands on top.
            inner[part[-1]] = max(inner[name] for name in part)
            levels.append(level)
        depths = [0] * (max(levels) + 1)
        for part, level in zip(self._parts, levels, strict=True):
            depths[level] = max(depths[level], 1 + inner[part[-1]])
        starts = list(accumulate(depths, initial=0))
        return {name: starts[levels[self._part[name]]] + row for name, row in inner.items()}

    def _all_links(self) -> Iterator[_Link]:
        """Yield the links of each wire, and note which lanes lie within a part."""
        for node in self.nodes.values():
            for source in node.reads:
                lower, lane = source, f"|{source}"
                for row in range(self._row[source], self._row[node.name] - 1):
                    yield _Link(row, source, lower, lane)
                    lower = lane
                yield _Link(self._row[node.name] - 1, source, lower, node.name)
                if self._part[source] == self._part[node.name]:
                    self._part[lane] = self._part[source]

    def _first_order(self) -> list[list[str]]:
        """Return a list a part and a lane, from left to right, each in the middle of what it reads.

        In a list stand the nodes and lanes of the part, ordered likewise.
        """
        place: dict[str, float] = {}
        for n, node in enumerate(self.nodes.values()):
            place[node.name] = fmean([place[s] for s in node.reads] or [n])
        place |= {k.upper: place[k.source] for k in self._links if k.upper not in self.nodes}
        blocks: dict[Any, list[str]] = {}
        for name in sorted(place, key=place.__getitem__):
            blocks.setdefault(self._part.get(name, name), []).append(name)
        return sorted(blocks.values(), key=lambda block: fmean(place[name] for name in block))

    def _fewest_crossings(self, blocks: list[list[str]]) -> list[str]:
        """Return the order after moves of single blocks, and of names within one, that pay."""
        cost = self._cost([*chain(*blocks)])
        best = cost(blocks)
        for _ in range(_SWEEPS):
            before = best
            # Features stay in their order.
            moved = [block for block in blocks if self._row.get(block[0]) != 0]
            sequences: list[list[Any]] = [blocks, *moved]
            for sequence in sequences:
                for member in tuple(sequence):
                    kept = sequence.index(member)
                    sequence.remove(member)
                    for place in range(len(sequence) + 1):
                        sequence.insert(place, member)
                        if (found := cost(blocks)) < best:
                            best, kept = found, place
                        del sequence[place]
                    sequence.insert(kept, member)
            if best == before:
                break
        return [*chain(*blocks)]

    def _cost(self, names: list[str]) -> Callable[[list[list[str]]], tuple[int, float]]:
        """Return what counts the crossings of an order, and how far the ends of links are apart."""
        number = {name: n for n, name in enumerate(names)}
        row = np.array([link.row for link in self._links], int)
        ends = [[number[name] for name in link[1:]] for link in self._links]
        source, lower, upper = np.array(ends, int).reshape(-1, 3).T
        operand = np.array([self._operand(link) for link in self._links], float)
        able = (row[:, None] == row) & (source[:, None] != source)

        def cost(blocks: list[list[str]]) -> tuple[int, float]:
            place = np.empty(len(names))
            place[[number[name] for name in chain(*blocks)]] = np.arange(len(names))
            low = place[lower]
            high = place[upper] + np.where(operand < 0, low / len(names), operand) - 0.5
            crossings = able & (low[:, None] < low) & (high[:, None] > high)
            return int(crossings.sum()), round(float(np.abs(low - high).sum()), 6)

        return cost

    def _operand(self, link: _Link) -> float:
        """Return where a link has to end at its box, from 0 to 1; -1 where the order is free."""
        node = self.nodes.get(link.upper)
        if node is None or not node.ordered:
            return -1
        return (node.reads.index(link.source) + 1) / (len(node.reads) + 1)

    def _entries(self) -> Iterator[tuple[_Link, float]]:
        """Yield for each link how far from the middle of its upper end it arrives."""
        place = {name: n for n, name in enumerate(self._order)}
        for upper in place:
            fan = [link for link in self._links if link.upper == upper]
            fan.sort(key=lambda link: (self._operand(link), place[link.lower]))
            gap = 1.6 * self._half(upper) / (len(fan) + 1)
            yield from ((link, (n - (len(fan) - 1) / 2) * gap) for n, link in enumerate(fan))

    def _in_row(self, row: int) -> list[str]:
        """Return the nodes, lanes and edges of panels in a row, from the left."""
        passing = {link.upper for link in self._links if link.row + 1 == row}
        here = [name for name in self._order if self._row.get(name) == row or name in passing]
        names: list[str] = []
        for part, group in groupby(here, lambda name: self._part.get(name, -1)):
            first, last = self._spans.get(part, (0, -1))
            members = [*group]
            names += [f"[{part}", *members, f"]{part}"] if first <= row <= last else members
        return names

    def _places(self) -> dict[str, float]:
        """Return the x of nodes, in their middle, of lanes, and of the edges of panels.

        The sum of what the links run level is as small as can be; of such places those where the
        longest link into each node is short, which puts it in the middle of what it reads.
        """
        from scipy.optimize import linprog

        rows = [self._in_row(row) for row in range(self._count)]
        spots = list(dict.fromkeys(chain(*rows)))
        bends = [link for link in self._links if link.lower != link.upper]
        names: list[Any] = [*spots, *bends, *(("longest", name) for name in spots)]
        unit = dict(zip(names, np.eye(len(names)), strict=True))
        # Pairs of a row of the matrix and a bound: row @ x <= bound.
        limits = [(np.zeros(len(names)), 0.0)]
        for a, b in chain(*map(pairwise, rows)):
            gap = _PAD if "[" in a or "]" in b else _GAP
            limits.append((unit[a] - unit[b], -self._half(a) - self._half(b) - gap))
        for n in self._spans:
            title = text_width(self._title(n), 9)
            limits.append((unit[f"[{n}"] - unit[f"]{n}"], -title - 2 * _PAD))
        least = 1e-4 * sum(unit[name] for name in spots)
        least += 0.01 * sum(unit[f"]{n}"] - unit[f"[{n}"] for n in self._spans)
        for link in bends:
            run, level = unit[link.lower] - unit[link.upper], unit[link]
            longest, entry = unit["longest", link.upper], self._entry[link]
            limits += [(run - level, entry), (-run - level, -entry), (level - longest, 0.0)]
            # A bend at the end of a lane is seen most.
            least += level * (1 if {link.lower, link.upper} <= self.nodes.keys() else 3)
        least += 0.1 * sum(unit["longest", name] for name in spots)
        least += 0.01 * sum(unit[row[-1]] - unit[row[0]] for row in rows)
        matrix, bounds = zip(*limits, strict=True)
        lows = [(self._half(name) if name in spots else 0.0, None) for name in names]
        found = linprog(least, np.array(matrix), bounds, bounds=lows)
        return {name: round(float(x), 4) for name, x in zip(spots, found.x, strict=False)}

    def _heights(self) -> tuple[list[float], list[float], list[float]]:
        """Return where each row begins, where its boxes stand, and where it ends."""
        bottom, base, top = [0.0], [], []
        first, last = ({span[end] for span in self._spans.values()} for end in (0, 1))
        for row in range(self._count):
            below = (_PAD if row else _TITLE) if row in first else 0.0
            above = (_TITLE if row else _PAD) if row in last else 0.0
            tallest = max(self._sizes[name][1] for name, own in self._row.items() if own == row)
            base.append(bottom[row] + below)
            top.append(base[row] + tallest + above)
            bends = [abs(self._run(link)) for link in self._links if link.row == row]
            bottom.append(top[row] + 0.3 + min(0.12 * max(bends, default=0.0), 0.6))
        return bottom, base, top

    def _run(self, link: _Link) -> float:
        return self._x[link.upper] + self._entry[link] - self._x[link.lower]

    def _half(self, name: str) -> float:
        """Return half the width of a node, 0 for lanes and edges."""
        return self._sizes[name][0] / 2 if name in self._sizes else 0.0

    def _title(self, part: int) -> str:
        return shortened(self.nodes[self._parts[part][0]].group)

    def _panel(self, part: int, first: int, last: int) -> Panel:
        left, right = self._x[f"[{part}"], self._x[f"]{part}"]
        low, high = self._bottom[first], self._top[last]
        return Panel(self._title(part), Box(left, low, right - left, high - low), first == 0)

    def _wire(self, source: Node, target: Node) -> Wire:
        x, lower = self._x[source.name], source.name
        points = [(x, self._base[self._row[lower]] + self._sizes[lower][1])]
        for row in range(self._row[source.name], self._row[target.name]):
            upper = target.name if row + 1 == self._row[target.name] else f"|{source.name}"
            points.append((x, self._top[row]))
            x += self._run(_Link(row, source.name, lower, upper))
            points.append((x, self._bottom[row + 1]))
            lower = upper
        points.append((x, self._base[self._row[target.name]]))
        return Wire(source, target, tuple(dict.fromkeys(points)), source.live and target.live)


def text_width(text: str, size: float) -> float:
    """Return the width in inches of ``text`` set in bold at ``size`` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(weight="bold", size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def shortened(name: str, limit: int = 28) -> str:
    """Return ``name``, its middle cut out where it is longer than ``limit`` characters."""
    return name if len(name) <= limit else f"{name[:12]}…{name[13 - limit :]}"


def _size(node: Node) -> tuple[float, float]:
    """Return width and height of the box of a node."""
    if node.kind == "input":
        return 0.2, 0.2
    if node.kind == "feature":
        return text_width(shortened(node.label), 8.5) + 0.24, 0.32
    wide = max(text_width(shortened(node.label), 9), text_width(shortened(node.note, 48), 6.5))
    return max(wide + 0.3, 0.3 + 0.12 * len(node.reads)), 0.46
