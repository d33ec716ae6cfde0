"""The picture of a genotype, a layered graph in the manner of BM-NAS's Figure 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bmnas.report.geometry import Box, Label, Point, Sheet, Wire, junctions
from bmnas.report.layout import layout
from bmnas.report.style import (
    INK,
    PALE,
    Part,
    drawable,
    drawing_style,
    figure_of,
    figure_svg,
    tint,
    write_figure,
)
from bmnas.report.tree_layout import tree_layout
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.registry import describe

_CORNER = 0.07  # radius in inches of a wire's turns


def draw_genotype(genotype: Architecture) -> Any:
    """Return a matplotlib Figure of the architecture.

    Features stand below, by modality, those that nothing reads pale; then the Cells with
    their steps; the head on top. Raises UserError when matplotlib is missing.
    """
    return figure_of(graph_part(genotype))


def architecture_svg(genotype: Architecture) -> str:
    """Return the drawing of the architecture as SVG text; the same genotype, the same bytes."""
    return figure_svg(draw_genotype(genotype))


def write_architecture(genotype: Architecture, path: str | Path) -> None:
    """Write the drawing of the architecture to an .svg or .png file, whole or not at all."""
    write_figure(draw_genotype(genotype), Path(path))


def graph_part(genotype: Architecture) -> Part:
    """Return the drawing of the architecture as a part of a larger figure."""
    with drawing_style():
        sheet = _sheet(genotype)
    return Part(sheet.width, sheet.height, lambda onto: _paint(onto, sheet))


def _sheet(genotype: Architecture) -> Sheet:
    if isinstance(genotype, Genotype):
        return layout(genotype, text_width)
    return tree_layout(describe(genotype), text_width)


def text_width(text: str, size: float) -> float:
    """Return the width in inches of ``text`` set in bold at ``size`` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(weight="bold")
    outline = TextPath((0, 0), drawable(text, 240), size=size, prop=font)
    return float(outline.get_extents().width) / 72


def _paint(onto: Any, sheet: Sheet) -> None:
    axes = onto.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    # One unit is one inch also where the row of the figure is wider than the drawing.
    inches = onto.bbox.width / onto.figure.dpi, onto.bbox.height / onto.figure.dpi
    axes.set_xlim((sheet.width - inches[0]) / 2, (sheet.width + inches[0]) / 2)
    axes.set_ylim((sheet.height - inches[1]) / 2, (sheet.height + inches[1]) / 2)
    for box in sheet.boxes:
        if box.kind in ("group", "cell"):
            _draw_box(axes, box)
    for wire in sorted(sheet.wires, key=lambda wire: not wire.pale):
        _draw_wire(axes, wire)
    for (x, y), colour in junctions(sheet.wires):
        axes.plot([x], [y], "o", color=colour, markersize=3.2, zorder=4)
    for box in sheet.boxes:
        if box.kind not in ("group", "cell"):
            _draw_box(axes, box)
    for label in sheet.labels:
        _draw_label(axes, label)


def _draw_box(axes: Any, box: Box) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch

    fill, edge, text = _box_colours(box)
    dashes = (0, (3, 2)) if box.pale and box.kind in ("step", "bar") else "solid"
    look: dict[str, Any] = {
        "facecolor": fill,
        "edgecolor": edge,
        "linewidth": 0.9,
        "linestyle": dashes,
    }
    layer = 1 if box.kind in ("group", "cell") else 5
    if box.kind == "port":
        axes.add_patch(Circle(box.centre, box.width / 2, zorder=layer, **look))
    else:
        radius = {"group": 0.1, "cell": 0.12, "bar": 0.05}.get(box.kind, 0.07)
        axes.add_patch(
            FancyBboxPatch(
                (box.x, box.y),
                box.width,
                box.height,
                boxstyle=f"round,pad=0,rounding_size={radius}",
                zorder=layer,
                **look,
            )
        )
    x, y = box.centre
    if box.kind == "step":
        _text(axes, (x + 0.05, y + 0.07), box.label, 9, text)
        _text(axes, (x + 0.05, y - 0.11), box.note, 6.5, text)
    elif box.kind == "head":
        above = 0.09 if box.note else 0.0
        _text(axes, (x, y + above), box.label, 9, text, weight="bold")
        _text(axes, (x, y - 0.11), box.note, 7.5, text)
    elif box.kind == "bar":
        _text(axes, (x, y), box.label, 7.5, text, rotation=90, va="center")
    elif box.kind == "port":
        _text(axes, (x, y + 0.005), box.label, 7.5, text, style="italic", weight="bold")
    elif box.label:
        _text(axes, (x, y), box.label, 8.5, text)


def _box_colours(box: Box) -> tuple[str, str, str]:
    """Return the colours of the inside, the edge and the text of a box."""
    if box.kind == "group":
        return tint(box.colour, 0.06), tint(box.colour, 0.3), INK
    if box.kind == "cell":
        return box.colour, PALE, INK
    if box.pale:
        return "#ffffff", PALE, "#66717A"
    if box.kind == "feature":
        return tint(box.colour, 0.24), box.colour, "#111111"
    if box.kind == "port":
        return box.colour, box.colour, "#ffffff"
    return "#ffffff", box.colour, INK


def _draw_wire(axes: Any, wire: Wire) -> None:
    from matplotlib.patches import FancyArrowPatch, PathPatch

    colour = PALE if wire.pale else wire.colour
    path = _rounded_path(wire)
    layer = 2 if wire.pale else 3
    look = {
        "facecolor": "none",
        "edgecolor": colour,
        "linewidth": 1.3,
        "linestyle": (0, (3, 2)) if wire.pale else "solid",
        "zorder": layer,
    }
    axes.add_patch(PathPatch(path, **look))
    (x, y), (end_x, end_y) = wire.points[-2], wire.points[-1]
    if (x, y) == (end_x, end_y):
        x, y = wire.points[-3]
    length = abs(end_x - x) + abs(end_y - y)
    back = min(0.1, length)
    start = (end_x - back * (end_x - x) / length, end_y - back * (end_y - y) / length)
    axes.add_patch(
        FancyArrowPatch(
            start,
            (end_x, end_y),
            arrowstyle="-|>,head_length=3.4,head_width=1.7",
            mutation_scale=1,
            shrinkA=0,
            shrinkB=0,
            color=colour,
            linewidth=0.8,
            zorder=layer + 0.5,
        )
    )


def _rounded_path(wire: Wire) -> Any:
    """Return the wire as a matplotlib Path whose turns are rounded; it ends in the arrow."""
    from matplotlib.path import Path as Outline

    points = _without_repeats(wire.points)
    vertices, codes = [points[0]], [Outline.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(_CORNER, _distance(before, corner) / 2, _distance(corner, after) / 2)
        vertices += [_towards(corner, before, radius), corner, _towards(corner, after, radius)]
        codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
    # A little short of the end, so that the line does not blunt the point of the arrow.
    vertices.append(_towards(points[-1], points[-2], 0.03))
    codes.append(Outline.LINETO)
    return Outline(vertices, codes)


def _without_repeats(points: tuple[Point, ...]) -> list[Point]:
    return [p for n, p in enumerate(points) if n == 0 or _distance(p, points[n - 1]) > 1e-9]


def _distance(a: Point, b: Point) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _towards(start: Point, end: Point, step: float) -> Point:
    share = step / max(_distance(start, end), 1e-9)
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _draw_label(axes: Any, label: Label) -> None:
    _text(
        axes,
        (label.x, label.y),
        label.text,
        label.size,
        label.colour,
        ha=label.align,
        weight="bold" if label.bold else "normal",
        style="italic" if label.italic else "normal",
    )


def _text(axes: Any, at: Point, text: str, size: float, colour: str, **look: Any) -> None:
    options = {"ha": "center", "va": "center_baseline", "zorder": 6, **look}
    axes.text(*at, drawable(text, 240), fontsize=size, color=colour, **options)
