"""A description as a drawing: every group on its own first, then as one box among the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from bmnas.machine.errors import UserError
from bmnas.report.stack import Item, Point, Stack
from bmnas.spaces.description import Description, Node

#: Width in inches of a text at a size in points.
TextWidth = Callable[[str, float], float]

_LIMIT = 300  # nodes
_WIDEST = 11.0  # of a row of boxes, where they need not stand in one
_PAD = 0.14  # beside what stands in a panel
_TITLE = 0.27


@dataclass(frozen=True)
class Box:
    """A rectangle with its lower left corner at (x, y)."""

    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> Point:
        """The middle of the box."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Panel:
    """The frame of a group; its title stands below where nothing enters there."""

    title: str
    nodes: tuple[Node, ...]
    box: Box
    title_below: bool


@dataclass(frozen=True)
class Wire:
    """A connection between two nodes; between two points it bends from upright to upright."""

    source: Node
    target: Node
    points: tuple[Point, ...]

    @property
    def live(self) -> bool:
        """Whether what it carries has an effect."""
        return self.source.live and self.target.live


@dataclass(frozen=True)
class Drawing:
    """All that is drawn, from (0, 0) to (width, height)."""

    width: float
    height: float
    boxes: tuple[tuple[Node, Box], ...]
    panels: tuple[Panel, ...]
    wires: tuple[Wire, ...]


def layout(description: Description, text_width: TextWidth) -> Drawing:
    """Place the nodes and wires of ``description``.

    Raises UserError when it has more nodes than a picture can show.
    """
    if len(description.nodes) > _LIMIT:
        raise UserError(
            f"drawing: received {len(description.nodes):,} nodes, expected at most {_LIMIT}; "
            "`bmnas show` without --out prints it as text"
        )
    runs = groupby(description.nodes, lambda node: node.group)
    parts = [
        _Part(f"part {n}", tuple(nodes), description, text_width)
        for n, (_, nodes) in enumerate(runs)
    ]
    whole = Stack([item for part in parts for item in part.items()], _WIDEST)
    nodes = {node.name: node for node in description.nodes}
    home = {node.name: part for part in parts for node in part.nodes}
    wires = [
        Wire(nodes[source], node, _path(source, node.name, home, whole))
        for node in description.nodes
        for source in dict.fromkeys(node.reads)
    ]
    return Drawing(
        whole.width,
        whole.height,
        tuple(box for part in parts for box in part.boxes(whole)),
        tuple(part.panel(whole) for part in parts if part.stack is not None),
        tuple(wires),
    )


def shortened(name: str, limit: int = 28) -> str:
    """Return ``name``, its middle cut out where it is longer than ``limit`` characters."""
    return name if len(name) <= limit else f"{name[:12]}…{name[13 - limit :]}"


class _Part:
    """Neighbours of one group, laid out in a stack; or nodes without a group, each for itself."""

    def __init__(
        self, key: str, nodes: tuple[Node, ...], description: Description, text_width: TextWidth
    ) -> None:
        own = {node.name for node in nodes}
        reads = [source for node in nodes for source in node.reads if source not in own]
        others = [node for node in description.nodes if node.name not in own]
        self.key, self.nodes, self.title = key, nodes, nodes[0].group
        self.reads = tuple(dict.fromkeys(reads))
        self.given = {source for node in others for source in node.reads if source in own}
        self.sizes = {node.name: _size(node, text_width) for node in nodes}
        self.stack = Stack(list(self._inner_items())) if self.title else None
        self.title_width = text_width(shortened(self.title), 9) if self.title else 0.0

    def _inner_items(self) -> Iterator[Item]:
        """Yield the nodes, and where the wires from and to others pass the edge of the panel."""
        for source in self.reads:
            yield Item(source, 0, 0, exits={source: 0})
        for node in self.nodes:
            yield _item(node, self.sizes[node.name])
            if node.name in self.given:
                yield Item(_edge(node.name), 0, 0, (node.name,), top=True)

    def items(self) -> list[Item]:
        """Return what stands in the layout of the whole."""
        if self.stack is None:
            return [_item(node, self.sizes[node.name]) for node in self.nodes]
        width = max(self.stack.width, self.title_width) + 2 * _PAD
        x, middle = self.stack.x, self.stack.width / 2
        exits = {name: x[_edge(name)] - middle for name in sorted(self.given)}
        entries = {source: x[source] - middle for source in self.reads}
        height = self.stack.height + _TITLE + (0 if self.given else _PAD)
        return [Item(self.key, width, height, self.reads, exits, entries)]

    def corner(self, whole: Stack) -> Point:
        """Return where the stack of the group has its lower left corner."""
        assert self.stack is not None
        y = whole.y(self.key) + (0 if self.reads else _TITLE)
        return whole.x[self.key] - self.stack.width / 2, y

    def boxes(self, whole: Stack) -> Iterator[tuple[Node, Box]]:
        """Yield the places of the nodes."""
        stack, (left, bottom) = (
            (whole, (0.0, 0.0)) if self.stack is None else (self.stack, self.corner(whole))
        )
        for node in self.nodes:
            width, height = self.sizes[node.name]
            x, y = left + stack.x[node.name] - width / 2, bottom + stack.y(node.name)
            yield node, Box(x, y, width, height)

    def panel(self, whole: Stack) -> Panel:
        """Return the frame."""
        item = whole.items[self.key]
        left, bottom = whole.x[self.key] - item.width / 2, whole.y(self.key)
        box = Box(left, bottom, item.width, item.height)
        return Panel(self.title, self.nodes, box, title_below=not self.reads)

    def inner_wire(self, source: str, target: str, whole: Stack) -> list[Point]:
        """Return a wire within the group; nothing where there is none."""
        if self.stack is None:
            return []
        left, bottom = self.corner(whole)
        return [(left + x, bottom + y) for x, y in self.stack.wire(source, target)]


def _path(source: str, target: str, home: Mapping[str, _Part], whole: Stack) -> tuple[Point, ...]:
    """Return the points of a wire, through the panels that it leaves and enters."""
    start, end = home[source], home[target]
    if start is end and start.stack is not None:
        points = start.inner_wire(source, target, whole)
    else:
        points = start.inner_wire(source, _edge(source), whole)
        points += whole.wire(source, target if end.stack is None else end.key)
        points += end.inner_wire(source, target, whole)
    return tuple(points)


def _item(node: Node, size: tuple[float, float]) -> Item:
    return Item(node.name, *size, node.reads, {node.name: 0.0}, ordered=node.ordered)


def _edge(name: str) -> str:
    return f"{name} leaves"


def _size(node: Node, text_width: TextWidth) -> tuple[float, float]:
    """Return width and height of the box of a node."""
    if node.kind == "input":
        return 0.2, 0.2
    if node.kind == "feature":
        return text_width(shortened(node.label), 8.5) + 0.24, 0.32
    wide = max(text_width(shortened(node.label), 9), text_width(shortened(node.note, 48), 6.5))
    return max(wide + 0.3, 0.3 + 0.12 * len(node.reads)), 0.46
