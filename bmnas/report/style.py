"""Colours, type and files of every picture; the only place that starts matplotlib."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bmnas.machine.errors import UserError
from bmnas.machine.files import atomic_path, write_text
from bmnas.spaces.description import modality_of

#: Okabe and Ito's palette, which readers with any colour vision can tell apart on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#2B3640"
GREY = "#7A858E"
PALE = "#B9C1C7"
PANEL = "#F4F6F7"

_SETTINGS = Path(__file__).with_name("pictures.mplstyle")


class Part(NamedTuple):
    """A row of a figure, in inches; ``paint`` draws onto a SubFigure at least as wide."""

    width: float
    height: float
    paint: Callable[[Any], None]


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """Set matplotlib to these settings alone, whatever the user's matplotlibrc says.

    Raises UserError when matplotlib, which the extra ``search`` installs, is missing.
    """
    try:
        import matplotlib.style
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise UserError("drawing needs matplotlib: pip install 'bmnas[search]'") from error

    with matplotlib.style.context(["default", _SETTINGS]):
        yield


def figure_of(*parts: Part) -> Any:
    """Return a matplotlib Figure with the ``parts`` under each other, at their own heights.

    Raises UserError where there are none.
    """
    if not parts:
        raise UserError("expected a genotype or history.jsonl to draw, received neither")
    with drawing_style():
        from matplotlib.figure import Figure

        size = (max(part.width for part in parts), sum(part.height for part in parts))
        figure = Figure(figsize=size, layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.1, h_pad=0.07)
        rows = figure.subfigures(
            len(parts), 1, squeeze=False, height_ratios=[part.height for part in parts]
        )
        for row, part in zip(rows[:, 0], parts, strict=True):
            part.paint(row)
    return figure


def figure_svg(figure: Any) -> str:
    """Return a Figure as SVG text; equal drawings give equal bytes."""
    buffer = io.BytesIO()
    with drawing_style(), warnings.catch_warnings():
        # The file holds text, which whoever shows it draws by fonts of theirs.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "bmnas"})
    return buffer.getvalue().decode("utf-8")


def write_figure(content: Any, path: Path) -> None:
    """Write a Figure as .svg or .png, or a text as it is, whole or not at all.

    Raises UserError on another suffix of a Figure.
    """
    if isinstance(content, str):
        write_text(path, content)
        return
    check_suffix(path, ".svg", ".png")
    if path.suffix == ".svg":
        write_text(path, figure_svg(content))
    else:
        with atomic_path(path) as aside, drawing_style():
            content.savefig(aside, format="png", dpi=160, metadata={"Software": "bmnas"})


def check_suffix(path: Path, *suffixes: str) -> None:
    """Raise UserError when the name of a file to write ends in none of ``suffixes``."""
    if path.suffix not in suffixes:
        raise UserError(
            f"{path}: received suffix {path.suffix!r}, expected one of {', '.join(suffixes)}"
        )


def short_ticks(axis: Any, *, log: bool) -> None:
    """Write numbers such as 0.5, 20 and 50k, at 1, 2 and 5 of each power where ``log``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    def short(value: float, _: int) -> str:
        size, suffix = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k")
        return f"{value / size:.6g}{suffix}" if abs(value) >= 1e3 else f"{value:.6g}"

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12) if log else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_formatter(NullFormatter())


def modality_colours(features: Sequence[str]) -> dict[str, str]:
    """Return a colour for each modality, in the order in which ``features`` name them."""
    names = dict.fromkeys(modality_of(feature) for feature in features)
    return {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(names)}


def tint(colour: str, share: float) -> str:
    """Return ``#rrggbb`` mixed with white; ``share`` 1 is the colour, 0 is white."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)


def printable(text: str, limit: int = 60) -> str:
    """Return ``text`` without control characters and cut to ``limit`` characters."""
    kept = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return kept if len(kept) <= limit else f"{kept[: limit - 1]}…"
