"""A few samples of each part of a task, drawn as what they are: pictures, skeletons, curves, words.

Legend: T time, J joints, D numbers at a time.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError, few
from bmnas.report.style import GREY, INK, PALETTE, Part, figure_of, printable
from bmnas.report.tables import DASH
from bmnas.tasks.kinds import Array, task_kind
from bmnas.tasks.ntu import BODIES, BONES, JOINTS
from bmnas.tasks.sources import Source, fields_of
from bmnas.tasks.survey import ReadModality, Survey
from bmnas.tasks.task import PARTS, Modality, ModalityType, Task

_SAMPLES = 4  # of each part
_HEIGHT = 1.3  # inches of a sample
_LABEL = 1.9  # inches of what stands left of it
_WIDTH: dict[ModalityType, float] = {"image": 1.4, "clip": 6.5, "text": 3.2, "tokens": 3.2}
_SKELETONS, _USUAL = 5.2, 2.8
_FRAMES = 6
_PIXELS = 160  # a larger picture is thinned out to so many rows
_CURVES = 8  # so many numbers at a time are lines, more are a picture
_POINTS = 2000  # of a curve
_BETWEEN = 1.7  # metres between the skeletons of two moments


def contact_sheet(found: Survey) -> Any:
    """Return a matplotlib Figure: a row a sample, evenly spaced in its part; a column a modality.

    What cannot be read has the reason in its place. Raises UserError for a task whose data could
    not be read at all, and without matplotlib.
    """
    if not found.modalities:
        raise UserError(f"task {found.task.name}: no data to draw: {few(found.problems, 1)}")
    rows = []
    for part in PARTS:
        samples = found.task.samples(part)
        chosen = np.unique(np.linspace(0, len(samples) - 1, _SAMPLES).astype(np.int64))
        rows += [_row(found, int(sample), first=n == 0) for n, sample in enumerate(samples[chosen])]
    return figure_of(*rows)


def _row(found: Survey, sample: int, *, first: bool) -> Part:
    """Return the drawing of a sample; the ``first`` of a part has the modalities' names."""
    widths = [_width(read.modality) for read in found.modalities]
    height = _HEIGHT + 0.2 * first

    def paint(onto: Any) -> None:
        axes = onto.subplots(1, 1 + len(widths), width_ratios=[_LABEL, *widths], squeeze=False)[0]
        for panel in axes:
            panel.set_axis_off()
        _write(axes[0], _about(found.task, sample), INK, 26)
        for panel, read in zip(axes[1:], found.modalities, strict=True):
            if first:
                panel.set_title(printable(read.modality.name), fontsize=8, color=GREY, loc="left")
            _draw(panel, read, sample)

    return Part(_LABEL + sum(widths), height, paint)


def _width(modality: Modality) -> float:
    return _SKELETONS if _of_skeletons(modality) else _WIDTH.get(modality.type, _USUAL)


def _of_skeletons(modality: Modality) -> bool:
    """Tell whether rows are (T, D) of the joints of NTU RGB+D, which is what HCN takes."""
    return modality.backbone == "hcn" and modality.data.shape[2] == BODIES * JOINTS * 3


def _about(task: Task, sample: int) -> str:
    """Return part, number, name and classes of a sample."""
    lines = [f"{PARTS[task.part[sample]]} {sample}"]
    if task.names:
        lines.append(task.names[sample])
    of_classes = task_kind(task.kind).belonging(task.labels[sample : sample + 1], task.classes)
    if of_classes is None:
        return "\n".join([*lines, str(task.labels[sample])])
    names = ", ".join(task.class_names[k] for k in np.flatnonzero(of_classes[0]))
    return "\n".join([*lines, names or "no class"])


def _draw(axes: Any, read: ReadModality, sample: int) -> None:
    modality = read.modality
    number = modality.rows_of(np.array([sample]))
    if not 0 <= number[0] < len(modality.data):
        _write(axes, "no such row", PALETTE[1], 40)
        return
    if modality.lacking(np.array([sample]))[0]:
        _write(axes, "missing", INK, 40)
        return
    try:
        row = np.asarray(modality.data[number])[0]
    except UserError as error:
        _write(axes, str(error), PALETTE[1], 40)
        return
    if modality.type in ("text", "tokens"):
        is_text = modality.type == "text"
        words = str(row) if is_text else " ".join(map(str, np.trim_zeros(row, "b")))
        _write(axes, words, INK, 46)
    elif fields := _fields(modality, row):
        _write(axes, fields, INK, 46)
    elif modality.type in ("image", "clip"):
        _pictures(axes, row if modality.type == "clip" else row[None], read)
    elif _of_skeletons(modality):
        _skeletons(axes, row.reshape(len(row), BODIES, JOINTS, 3))
    elif modality.type in ("sequence", "regions") and row.shape[1] > _CURVES:
        axes.imshow(row.T, aspect="auto", origin="lower", cmap="viridis")
    else:
        _curves(axes, row)


def _fields(modality: Modality, row: Array) -> str:
    """Return the columns of a table that a row (D,) was made of, and their values; or nothing."""
    if modality.source is None:
        return ""
    fields = fields_of(Source.from_dict(modality.source, modality.name).vector, row)
    return "\n".join(f"{n}: {DASH if value is None else value}" for n, value in fields.items())


def _write(axes: Any, text: str, colour: str, width: int) -> None:
    """Write what fits of a text of several lines."""
    lines = [
        line for part in text.split("\n") for line in textwrap.wrap(printable(part, 400), width)
    ]
    most = 8
    shown = [*lines[: most - 1], "…"] if len(lines) > most else lines
    axes.text(0, 1, "\n".join(shown), color=colour, va="top", fontsize=7, transform=axes.transAxes)


def _pictures(axes: Any, frames: Array, read: ReadModality) -> None:
    """Draw frames (T, H, W) or (T, H, W, 3) side by side, some of many.

    The lowest number of the whole modality is black, the highest white.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES).astype(np.int64))
    step = -(-frames.shape[1] // _PIXELS)
    some = frames[chosen, ::step, ::step].astype(np.float32)
    low, high = read.low or 0.0, read.high or 0.0
    scaled = np.clip((some - low) / max(high - low, 1e-6), 0, 1)
    gap = max(scaled.shape[2] // 32, 1) if len(scaled) > 1 else 0
    padding = [(0, 0), (0, 0), (0, gap), (0, 0)][: scaled.ndim]
    padded = np.pad(scaled, padding, constant_values=1.0)
    joined = np.concatenate([*padded], axis=1)
    axes.imshow(joined, cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set_anchor("NW")


def _skeletons(axes: Any, joints: Array) -> None:
    """Draw bodies (T, bodies, J, 3) from the front at some moments, one beside the other."""
    chosen = np.linspace(0, len(joints) - 1, _FRAMES).astype(np.int64)
    for place, moment in enumerate(joints[chosen]):
        for body, colour in zip(moment, PALETTE, strict=False):
            if np.ptp(body[:, 0]) < 1e-3:  # a body that is not there is a point
                continue
            # A gap after each bone, so that all are one line.
            ends = np.concatenate(
                [body[np.array(BONES), :2], np.full((len(BONES), 1, 2), np.nan)], 1
            )
            x, y = ends.reshape(-1, 2).T
            axes.plot(x + place * _BETWEEN, y, color=colour, linewidth=0.9)
    axes.set_aspect("equal", adjustable="datalim")


def _curves(axes: Any, row: Array) -> None:
    """Draw (T) or (T, D) as lines over time."""
    thinned = row[:: -(-len(row) // _POINTS)]
    axes.plot(thinned, linewidth=0.7)
    axes.axhline(0, color=GREY, linewidth=0.4)
