"""The drawing of an architecture that is a tree: features below, the classifier on top.

A feature that is read twice stands there twice, so that no wire crosses another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bmnas.machine.errors import UserError
from bmnas.report.geometry import Box, BoxKind, Label, Sheet, Wire
from bmnas.report.lettering import Measure, shortened, wrapped
from bmnas.report.style import GREY, INK, modality_colours, modality_of
from bmnas.spaces.description import Description, Node

_MARGIN = 0.15
_GAP = 0.14  # between two neighbours
_LEAF = 0.32  # height
_INNER = 0.46
_RISE = 0.42  # from the top of a node to the bottom of what reads it
_LIMIT = 100  # nodes


def tree_layout(found: Description, measure: Measure) -> Sheet:
    """Place everything that a drawing of ``found`` shows on one sheet.

    Raises UserError when it has more nodes than a picture can show.
    """
    plan = _Plan(found, measure)
    placed = plan.place(found.nodes[-1], _MARGIN)
    if plan.count > _LIMIT:
        raise UserError(
            f"drawing: received {plan.count:,} nodes, expected at most {_LIMIT}; "
            "`bmnas show` without --out prints it as text"
        )
    return plan.sheet(placed)


@dataclass
class _Placed:
    """A node with the middle of its box, the height of its row, and what it reads."""

    node: Node
    x: float
    row: int
    width: float
    children: list[_Placed] = field(default_factory=list)


class _Plan:
    """Columns from left to right, rows from the leaves up."""

    def __init__(self, found: Description, measure: Measure) -> None:
        self.found, self.measure = found, measure
        self.nodes = {node.name: node for node in found.nodes}
        self.colours = modality_colours(found.features)
        self.right = _MARGIN
        self.count = 0

    def place(self, node: Node, left: float) -> _Placed:
        """Place ``node`` and all below it to the right of ``left``."""
        self.count += 1
        texts = ((node.label, 9.0), (node.note, 6.5))
        width = max(self.measure(shortened(text), size) for text, size in texts if text) + 0.3
        if not node.reads:
            self.right = left + width
            return _Placed(node, left + width / 2, 0, width)
        children: list[_Placed] = []
        start = left
        for name in node.reads:
            children.append(self.place(self.nodes[name], start))
            start = self.right + _GAP
        middle = (children[0].x + children[-1].x) / 2
        # A box that is wider than all below it moves them to its middle.
        missing = left + width / 2 - middle
        if missing > 0:
            for placed in children:
                _move(placed, missing)
            middle += missing
        self.right = max(self.right + max(missing, 0.0), middle + width / 2)
        row = 1 + max(child.row for child in children)
        return _Placed(node, middle, row, width, children)

    def sheet(self, root: _Placed) -> Sheet:
        """Return the drawing."""
        facts = [self.found.summary]
        live = self.found.live_features()
        unread = [name for name in self.found.features if name not in live]
        if unread:
            facts.append(f"not used: {', '.join(unread)}")
        width = max(self.right + _MARGIN, 3.2)
        shift = (width - self.right - _MARGIN) / 2
        _move(root, shift)
        caption = wrapped(facts, width - 2 * _MARGIN, 7, self.measure)
        sheet = Sheet(width=width)
        for n, line in enumerate(reversed(caption)):
            at = _MARGIN + 0.06 + 0.15 * n
            sheet.labels.append(Label(width / 2, at, line, 7, colour=GREY))
        self._draw(sheet, root, _MARGIN + 0.15 * len(caption) + 0.12)
        top = sheet.height
        sheet.wires.append(Wire("logits", ((root.x, top), (root.x, top + 0.26)), INK))
        sheet.labels.append(Label(root.x + 0.08, top + 0.18, "logits", 8, "left"))
        sheet.height = top + 0.42
        return sheet

    def _colour(self, leaf: Node) -> str:
        # A hand-made fusion has no features of its own: it is a leaf itself.
        return self.colours.get(modality_of(leaf.label), INK)

    def _draw(self, sheet: Sheet, placed: _Placed, base: float) -> float:
        """Draw ``placed`` and all below it; return the height at which its box begins."""
        bottom = base if placed.row == 0 else base + _LEAF + _RISE
        bottom += max(0, placed.row - 1) * (_INNER + _RISE)
        node, height = placed.node, _INNER if placed.children else _LEAF
        colour = INK if placed.children else self._colour(node)
        kind: BoxKind = "head" if placed.children else "feature"
        left = placed.x - placed.width / 2
        label, note = shortened(node.label), shortened(node.note)
        sheet.boxes.append(Box(kind, left, bottom, placed.width, height, colour, label, note))
        sheet.height = max(sheet.height, bottom + height)
        count = len(placed.children)
        # Side by side where they end, as what is read stands below.
        ends = [placed.x + ((n + 1) / (count + 1) - 0.5) * placed.width * 0.8 for n in range(count)]
        left = sum(child.x < end for child, end in zip(placed.children, ends, strict=True))
        for n, (child, end) in enumerate(zip(placed.children, ends, strict=True)):
            below = self._draw(sheet, child, base) + (_INNER if child.children else _LEAF)
            # Of those from one side the outermost turns highest, so that none lies on another.
            further_out = n if n < left else count - 1 - n
            turn = bottom - 0.2 - further_out * min(0.07, 0.2 / count)
            points = ((child.x, below), (child.x, turn), (end, turn), (end, bottom))
            wire = INK if child.children else self._colour(child.node)
            sheet.wires.append(Wire(f"{child.x:.4f}", points, wire))
        return bottom


def _move(placed: _Placed, by: float) -> None:
    placed.x += by
    for child in placed.children:
        _move(child, by)
