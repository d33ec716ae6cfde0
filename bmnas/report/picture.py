"""The picture of an architecture: features below, what reads them above, the logits on top."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from bmnas.report.layout import Box, Layout, Panel, Point, shortened
from bmnas.report.style import (
    GREY,
    INK,
    PALE,
    PANEL,
    Part,
    drawing_style,
    figure_of,
    modality_colours,
    printable,
    tint,
)
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.description import Description, Node, modality_of
from bmnas.spaces.registry import describe

_MARGIN = 0.15
_ABOVE = 0.42  # room for the logits
_LINE = 0.15  # of the caption
_DASHES = (0, (3, 2))
_ROUND = "round,pad=0,rounding_size"


def draw_genotype(genotype: Architecture) -> Any:
    """Return a matplotlib Figure of the architecture; raises UserError without matplotlib."""
    return figure_of(architecture_part(describe(genotype)))


def architecture_part(description: Description) -> Part:
    """Return the drawing of an architecture as a part of a larger figure."""
    with drawing_style():
        layout = Layout(description)
    width = max(layout.width, 3.2) + 2 * _MARGIN
    caption = textwrap.wrap("  ·  ".join(_facts(description)), int(19 * width))
    below = _MARGIN + _LINE * len(caption) + 0.08
    height = below + layout.height + _ABOVE

    def paint(onto: Any) -> None:
        axes = onto.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        # One unit is one inch also where the row of the figure is wider than the drawing.
        inches = onto.bbox.width / onto.figure.dpi, onto.bbox.height / onto.figure.dpi
        middle = layout.width / 2
        axes.set_xlim(middle - inches[0] / 2, middle + inches[0] / 2)
        axes.set_ylim((height - inches[1]) / 2 - below, (height + inches[1]) / 2 - below)
        _paint(axes, description, layout)
        for n, line in enumerate(caption, start=1):
            _text(axes, (middle, -0.02 - _LINE * n), line, 7, GREY)

    return Part(width, height, paint)


def _facts(description: Description) -> list[str]:
    facts = list(description.facts) or [description.summary]
    drawn = {node.label for node in description.nodes if node.kind == "feature"}
    unread = [name for name in description.features if name not in drawn]
    facts += [f"not used: {', '.join(unread)}"] if unread else []
    dead = any(not node.live for node in description.nodes)
    return [*facts, "pale: no effect on the output"] if dead else facts


def _paint(axes: Any, description: Description, layout: Layout) -> None:
    colours = _colours(description)
    modalities = modality_colours(description.features)
    for panel in layout.panels:
        _draw_panel(axes, panel, modalities.get(panel.title) if panel.title_below else None)
    for wire in layout.wires:
        _draw_wire(axes, wire.points, colours[wire.source.name], wire.live)
    for name, box in layout.boxes.items():
        _draw_node(axes, layout.nodes[name], box, colours[name])
    x, y = box.x + box.width / 2, box.y + box.height
    _draw_wire(axes, [(x, y), (x, y + 0.26)], INK, live=True)
    _text(axes, (x + 0.08, y + 0.18), "logits", 8, INK, ha="left")


def _colours(description: Description) -> dict[str, str]:
    """Return the colour of each node: features by modality, an input as what it reads."""
    modalities = modality_colours(description.features)
    colours: dict[str, str] = {}
    for node in description.nodes:
        colours[node.name] = INK
        if node.kind == "feature":
            colours[node.name] = modalities[modality_of(node.label)]
        elif node.kind == "input" and node.reads:
            colours[node.name] = colours[node.reads[0]]
    return colours


def _draw_panel(axes: Any, panel: Panel, colour: str | None) -> None:
    box, ink = panel.box, colour or INK
    fill, edge = (tint(colour, 0.06), tint(colour, 0.3)) if colour else (PANEL, PALE)
    _shape(axes, box, f"{_ROUND}=0.1", fill, edge, zorder=1)
    if panel.title_below:
        at, side = (box.x + box.width / 2, box.y + 0.15), "center"
    else:
        at, side = (box.x + 0.12, box.y + box.height - 0.16), "left"
    _text(axes, at, panel.title, 9, ink, weight="bold", ha=side)


def _draw_node(axes: Any, node: Node, box: Box, colour: str) -> None:
    x, y = box.x + box.width / 2, box.y + box.height / 2
    fill, edge, ink = "#ffffff", colour, INK
    line: Any = "-" if node.live or node.kind == "feature" else _DASHES
    if not node.live:
        edge, ink = PALE, "#66717A"
    elif node.kind == "feature":
        fill = tint(colour, 0.24)
    elif node.kind == "input":
        fill, ink = colour, "#ffffff"
    style = "circle,pad=0" if node.kind == "input" else f"{_ROUND}=0.07"
    _shape(axes, box, style, fill, edge, zorder=5, linestyle=line)
    size, look = {
        "input": (7.5, {"style": "italic", "weight": "bold"}),
        "feature": (8.5, {}),
        "operation": (9, {}),
        "output": (9, {"weight": "bold"}),
    }[node.kind]
    _text(axes, (x, y + (0.08 if node.note else 0)), shortened(node.label), size, ink, **look)
    _text(axes, (x, y - 0.11), shortened(node.note, 48), 6.5, ink)


def _shape(axes: Any, box: Box, style: str, fill: str, edge: str, **look: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    look = {"facecolor": fill, "edgecolor": edge, "linewidth": 0.9, **look}
    axes.add_patch(FancyBboxPatch((box.x, box.y), box.width, box.height, style, **look))


def _draw_wire(axes: Any, points: Sequence[Point], colour: str, live: bool) -> None:
    """Draw an arrow through ``points``, upright in each of them."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Outline

    vertices: list[Point] = [points[0]]
    for (x, y), (right, top) in pairwise(points):
        middle = (y + top) / 2
        vertices += [(x, middle), (right, middle), (right, top)]
    codes = [Outline.MOVETO, *[Outline.CURVE4] * (len(vertices) - 1)]
    look: dict[str, Any] = {"color": colour, "zorder": 3}
    if not live:
        look = {"color": PALE, "zorder": 2, "linestyle": _DASHES}
    style = "-|>,head_length=3.4,head_width=1.7"
    path = Outline(vertices, codes)
    arrow = FancyArrowPatch(path=path, arrowstyle=style, mutation_scale=1, linewidth=1.3, **look)
    axes.add_patch(arrow)


def _text(axes: Any, at: Point, text: str, size: float, colour: str, **look: Any) -> None:
    options = {"ha": "center", "va": "center_baseline", "zorder": 6, **look}
    axes.text(*at, printable(text, 240), fontsize=size, color=colour, **options)
