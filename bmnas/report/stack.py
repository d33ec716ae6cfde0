"""Boxes in rows and the wires between them: each box stands above all that it reads.

A wire bends between two rows and runs straight up in a lane past a row, so it meets no box. The
order in the rows is that with few crossings; a linear program then makes the wires straight.
Lengths in inches, y upwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from typing import NamedTuple

import numpy as np

Point = tuple[float, float]

_EDGE = 0.1  # from the last row to the edge of its panel
_EFFORT = 1500  # orders that are tried at most


@dataclass(frozen=True)
class Item:
    """A box to be placed. ``exits`` and ``entries`` say how far from its middle nets leave and end.

    A net has the name of what gives it. Without ``entries`` those that the box ``reads`` end side
    by side, from the left as they are named where the box is ``ordered``. An item without a width
    is no box but a wire on its way: a lane, or where it passes the edge of a panel. What is on the
    ``top`` stands in the last row.
    """

    name: str
    width: float
    height: float
    reads: tuple[str, ...] = ()
    exits: Mapping[str, float] = field(default_factory=dict)
    entries: Mapping[str, float] | None = None
    ordered: bool = False
    top: bool = False


class _Link(NamedTuple):
    """The piece of a net from a row to the next one, between two items or lanes."""

    row: int
    net: str
    lower: str
    upper: str


class Stack:
    """``items``, in an order in which each reads earlier ones, in rows at most ``limit`` wide."""

    def __init__(self, items: Sequence[Item], limit: float = float("inf")) -> None:
        self.items = {item.name: item for item in items}
        self.source = {net: item.name for item in items for net in item.exits}
        self.row = self._rows(limit)
        self.count = 1 + max(self.row.values())
        self.links = self._links()
        self.below: dict[str, dict[str, str]] = {}
        for link in self.links:
            self.below.setdefault(link.upper, {})[link.net] = link.lower
            if link.upper not in self.items:
                here = {link.net: 0.0}
                self.items[link.upper] = Item(link.upper, 0, 0, exits=here, entries=here)
        self.order = self._fewest_crossings(self._first_order())
        self.entries = self._entries(self.order)
        self.x = self._places()
        self.bottom, self.top = self._heights()
        self.width = max(self.x[name] + item.width / 2 for name, item in self.items.items())
        self.height = self.top[-1]

    def y(self, name: str) -> float:
        """Return where the item ``name`` begins."""
        return self.bottom[self.row[name]]

    def wire(self, net: str, target: str) -> list[Point]:
        """Return points of the wire from what gives ``net`` to ``target``; it bends between two."""
        source = self.source[net]
        x = self._exit(source, net)
        points = [(x, self.y(source) + self.items[source].height)]
        for row in range(self.row[source], self.row[target]):
            upper = target if row + 1 == self.row[target] else _lane(net)
            points.append((x, self.top[row]))
            x = self._entry(upper, net)
            points.append((x, self.bottom[row + 1]))
        return points

    def _rows(self, limit: float) -> dict[str, int]:
        rows: dict[str, int] = {}
        filled: dict[int, float] = {}
        for item in self.items.values():
            row = 1 + max((rows[self.source[net]] for net in item.reads), default=-1)
            while 0 < row in filled and filled[row] + item.width > limit:
                row += 1
            rows[item.name] = row
            filled[row] = filled.get(row, 0.0) + item.width
        last = max((row for name, row in rows.items() if not self.items[name].top), default=0)
        return {name: last + 1 if self.items[name].top else row for name, row in rows.items()}

    def _links(self) -> list[_Link]:
        links: dict[_Link, None] = {}
        for item in self.items.values():
            for net in item.reads:
                lower = self.source[net]
                for row in range(self.row[lower], self.row[item.name]):
                    upper = item.name if row + 1 == self.row[item.name] else _lane(net)
                    links[_Link(row, net, lower, upper)] = None
                    lower = upper
        return list(links)

    def _first_order(self) -> list[str]:
        """Return items and lanes, each in the middle of what it reads."""
        place: dict[str, float] = {}
        for n, item in enumerate(self.items.values()):
            if item.name in self.row:
                below = [place[self.source[net]] for net in item.reads]
                place[item.name] = sum(below) / len(below) if below else n
        lanes = {_lane(net): place[name] for net, name in self.source.items()}
        place |= {lane: at for lane, at in lanes.items() if lane in self.items}
        return sorted(place, key=place.__getitem__)

    def _fewest_crossings(self, order: list[str]) -> list[str]:
        """Return ``order`` with single names moved as long as that takes crossings away."""
        best, idle = self._cost(order), 0
        for name in islice(cycle(tuple(order)), 1 + _EFFORT // len(order)):
            if best[0] == 0 or idle == len(order):
                break
            rest = [other for other in order if other != name]
            trials = [[*rest[:n], name, *rest[n:]] for n in range(len(order))]
            costs = [self._cost(trial) for trial in trials]
            idle += 1
            if min(costs) < best:
                best, idle = min(costs), 0
                order = trials[costs.index(best)]
        return order

    def _cost(self, order: Sequence[str]) -> tuple[int, float]:
        """Return the number of crossings, and how far the ends of links are apart in the order."""
        place = {name: n for n, name in enumerate(order)}
        entries = self._entries(order)
        crossings, apart = 0, 0.0
        for row in range(self.count - 1):
            links = [link for link in self.links if link.row == row]
            low = np.array([place[k.lower] + self._share(k.lower, k.net) for k in links])
            ends = [entries[k.upper][k.net] / max(self.items[k.upper].width, 1.0) for k in links]
            up = np.array([place[link.upper] for link in links]) + np.array(ends)
            nets = np.array([link.net for link in links])
            across = (low[:, None] < low) & (up[:, None] > up) & (nets[:, None] != nets)
            crossings += int(across.sum())
            apart += float(np.abs(low - up).sum())
        return crossings, round(apart, 6)

    def _entries(self, order: Sequence[str]) -> dict[str, Mapping[str, float]]:
        """Return for each item how far from its middle each net ends."""
        place = {name: n for n, name in enumerate(order)}
        entries: dict[str, Mapping[str, float]] = {}
        for name, lower in self.below.items():
            item, nets = self.items[name], list(lower)
            if item.entries is not None:
                entries[name] = item.entries
                continue
            if not item.ordered:
                nets.sort(key=lambda net: place[lower[net]] + self._share(lower[net], net))
            gap = 0.8 * item.width / (len(nets) + 1)
            entries[name] = {net: (n - (len(nets) - 1) / 2) * gap for n, net in enumerate(nets)}
        return entries

    def _places(self) -> dict[str, float]:
        """Return the middle of each item and the x of each lane, by a linear program.

        The sum of what the links run level is as small as can be; of such places those where the
        longest link into each item is short, which puts it in the middle of what it reads.
        """
        from scipy.optimize import linprog

        links = [link for link in self.links if link.lower != link.upper]
        pairs = [pair for row in range(self.count) for pair in pairwise(self._in_row(row))]
        one = dict(zip(self.order, np.eye(len(self.order)), strict=True))
        n, m = len(one), len(links)
        between = np.array([one[k.lower] - one[k.upper] for k in links]).reshape(m, n)
        into = np.array([one[link.upper] for link in links]).reshape(m, n)
        apart = np.array([one[a] - one[b] for a, b in pairs]).reshape(-1, n)
        shift = [self.items[k.lower].exits[k.net] - self.entries[k.upper][k.net] for k in links]
        # Variables: where items are, how far links run level, the most of this into each item.
        across, level, most = np.zeros((m, n)), np.eye(m), np.zeros((len(pairs), n + m))
        above = np.block([[between, -level, across], [-between, -level, across]])
        matrix = np.vstack([above, np.hstack([across, level, -into]), np.hstack([apart, most])])
        bounds = [*np.negative(shift), *shift, *[0.0] * m, *(-self._apart(a, b) for a, b in pairs)]
        # A bend at the end of a lane is seen most; no row is wider than it needs to be.
        bends = [1.0 if {link.lower, link.upper} <= self.row.keys() else 3.0 for link in links]
        ends = np.full(n, 1e-4)
        for names in map(self._in_row, range(self.count)):
            ends += 0.01 * (one[names[-1]] - one[names[0]])
        least = [self.items[name].width / 2 for name in self.order] + [0.0] * (m + n)
        found = linprog(
            [*ends, *bends, *[0.1] * n], matrix, bounds, bounds=[(low, None) for low in least]
        )
        return {name: round(float(x), 4) for name, x in zip(self.order, found.x, strict=False)}

    def _in_row(self, row: int) -> list[str]:
        passing = {link.upper for link in self.links if link.row + 1 == row}
        return [name for name in self.order if self.row.get(name) == row or name in passing]

    def _heights(self) -> tuple[list[float], list[float]]:
        """Return where each row begins and ends; wide bends get more room."""
        bottom, top = [0.0], []
        for row in range(self.count):
            members = [item for name, item in self.items.items() if self.row.get(name) == row]
            top.append(bottom[row] + max(item.height for item in members))
            bends = [
                abs(self._exit(link.lower, link.net) - self._entry(link.upper, link.net))
                for link in self.links
                if link.row == row
            ]
            last = all(self.items[name].top for name, own in self.row.items() if own == row + 1)
            gap = _EDGE if last else 0.3 + min(0.12 * max(bends, default=0.0), 0.6)
            bottom.append(top[row] + gap)
        return bottom, top

    def _exit(self, name: str, net: str) -> float:
        return self.x[name] + self.items[name].exits[net]

    def _entry(self, name: str, net: str) -> float:
        return self.x[name] + self.entries[name][net]

    def _share(self, name: str, net: str) -> float:
        """Return where ``net`` leaves, from -0.5 at the left end of the box to 0.5."""
        return self.items[name].exits[net] / max(self.items[name].width, 1.0)

    def _apart(self, a: str, b: str) -> float:
        widths = [self.items[name].width for name in (a, b)]
        return sum(widths) / 2 + (0.14, 0.18, 0.24)[sum(width > 0 for width in widths)]


def _lane(net: str) -> str:
    return f"|{net}"
