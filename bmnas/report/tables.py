"""Tables of text, of runs and bundles among them: for the terminal, as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from bmnas.report.metrics import STAGES, FrontPoint, RunMetrics, TrainedMetrics, UnimodalMetrics
from bmnas.report.style import printable

DASH = "–"
_WIDTH = 10_000  # of a table that goes to a file or a pipe: nothing wraps


@dataclass(frozen=True)
class TextTable:
    """A title, headings and rows of text; the first ``words`` columns are words, not numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1

    def only(self, kept: Sequence[int]) -> TextTable:
        """Return the table of the ``kept`` columns."""
        rows = tuple(tuple(row[n] for n in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[n] for n in kept), rows=rows)

    def measured(self, *, all_rows: bool = False) -> TextTable:
        """Return the table without columns of numbers, or rows, that hold mere dashes."""
        rows = tuple(row for row in self.rows if all_rows or set(row[self.words :]) != {DASH})
        columns = range(len(self.columns))
        kept = [n for n in columns if n < self.words or any(row[n] != DASH for row in rows)]
        return replace(self, rows=rows).only(kept)


def shown(value: Any, spec: str = ".6g", limit: int = 80) -> str:
    """Return a value as a table shows it: numbers in the format ``spec``, a dash for None.

    Large numbers are written in digits, not with an exponent; text is cut to ``limit`` characters.
    """
    if value is None:
        return DASH
    if isinstance(value, int | float) and not isinstance(value, bool):
        large = spec.endswith("g") and 999.5 <= abs(value) < 1e12
        return format(value, ",.0f" if large else spec)
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value[:50]))
    if isinstance(value, dict):
        value = ", ".join(f"{key} {item}" for key, item in value.items())
    return printable(str(value), limit)


def markdown(tables: Sequence[TextTable]) -> str:
    """Return the tables as Markdown, each under its title."""

    def text(content: str) -> str:
        return escape(content, quote=False).replace("|", r"\|").replace("`", r"\`")

    blocks = []
    for table in tables:
        sides = [":--" if n < table.words else "--:" for n in range(len(table.columns))]
        lines = [[*map(text, table.columns)], sides, *([*map(text, row)] for row in table.rows)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        blocks.append(f"### {text(table.title)}\n\n{body}\n")
    return "\n".join(blocks)


def html_tables(tables: Sequence[TextTable]) -> str:
    """Return the tables as HTML; everything in them is escaped."""

    def line(tag: str, cells: Sequence[str], words: int) -> str:
        sides = ["" if n < words else ' class="number"' for n in range(len(cells))]
        inner = (f"<{tag}{s}>{escape(c)}</{tag}>" for c, s in zip(cells, sides, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    return "".join(
        f'<div class="scroll"><table>\n<caption>{escape(table.title)}</caption>\n'
        f"<thead>{line('th', table.columns, table.words)}</thead>\n<tbody>\n"
        + "".join(f"{line('td', row, table.words)}\n" for row in table.rows)
        + "</tbody></table></div>\n"
        for table in tables
    )


def print_tables(tables: Sequence[TextTable]) -> None:
    """Print the tables to standard output, too wide ones in parts; in a pipe they stay whole."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Names in the tables come from files: they are text, never markup or emoji codes.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    for part in (part for table in tables for part in _parts(table, console.width)):
        drawn = Table(title=part.title, box=box.SIMPLE_HEAD, title_justify="left")
        for n, (column, width) in enumerate(zip(part.columns, _widths(part), strict=True)):
            # Where words must make room, numbers stay on one line.
            short = n >= part.words and width <= console.width // 2
            side: Any = "left" if n < part.words else "right"
            drawn.add_column(column, justify=side, overflow="fold", no_wrap=short)
        for row in part.rows:
            drawn.add_row(*row)
        console.print(drawn)


def _parts(table: TextTable, width: int) -> list[TextTable]:
    """Return the table as parts of at most ``width``, the columns of words in each of them.

    These may take half of the width; more of them has to wrap.
    """
    widths, words = _widths(table), [*range(table.words)]
    room = width - 1 - min(sum(widths[: table.words]), width // 2)
    parts: list[list[int]] = [[]]
    for n in range(table.words, len(table.columns)):
        if parts[-1] and sum(widths[m] for m in (*parts[-1], n)) > room:
            parts.append([])
        parts[-1].append(n)
    return [table.only([*words, *part]) for part in parts]


def _widths(table: TextTable) -> list[int]:
    """Return how wide the columns are in a terminal, with what parts each from the next."""
    from rich.cells import cell_len

    lines = (table.columns, *table.rows)
    return [3 + max(map(cell_len, cells)) for cells in zip(*lines, strict=True)]


def unimodal_together(metric: str | None) -> str:
    """Return what unimodal networks say together is called where the score is ``metric``."""
    return "similarity of predicted words" if metric == "mean_recall" else "mean of unimodal logits"


def run_tables(metrics: RunMetrics) -> list[TextTable]:
    """Return scores, sizes, latency and time of a run, without what no stage has measured yet."""
    mean = None if metrics.test is None else metrics.test.unimodal_mean
    scores = [
        *((_own(name, own), own.validation, own.test) for name, own in metrics.unimodal.items()),
        (unimodal_together(metrics.metric), None, mean),
        ("fused", metrics.validation_score, metrics.test_score),
        ("fused, macro f1", None, None if metrics.test is None else metrics.test.macro_f1),
    ]
    if metrics.test is not None:
        more = {**metrics.test.by_type, **_details(metrics.test)}
        scores += [(f"fused, {_words(name)}", None, own) for name, own in more.items()]
    # Nothing was compiled: no line of zeros.
    seconds = {k: v for k, v in metrics.seconds.items() if v or not k.endswith("compile")}
    times = [(_words(k), seconds.get(k), metrics.samples_per_second.get(k)) for k in STAGES]
    metric = _words(metrics.metric or "score")
    tables = [
        _table(f"Scores, {metric}", ("network", "validation", "test"), scores, ".4f"),
        _table("Time", ("stage", "seconds", "samples/s"), times, ",.1f"),
    ]
    if worth := metrics.importance:
        title = f"What each part is worth: {metric} lost when it is shuffled, validation"
        drops = {**worth.modalities, **worth.features}.items()
        lines = [(name, drop.mean, drop.deviation) for name, drop in drops]
        tables.insert(1, _table(title, ("part", "lost", "±"), lines, ".4f"))
    measured = [table for table in (table.measured() for table in tables) if table.rows]
    found = metrics.to_dict()
    if metrics.search is not None and metrics.search.front:
        measured.append(_front(metrics.search.front, metric))
    found.get("search", {}).pop("front", None)
    if hours := metrics.seconds.get("gpu_hours"):
        found["search"] = {**found.get("search", {}), "GPU-hours": hours}
    if metrics.test is not None and metrics.test.gallery is not None:
        found["gallery of the test"] = found["test"]["gallery"]
    kept = ("search", "gallery of the test", "parameters", "latency", "peak_memory")
    return [*measured, *_sections({key: found[key] for key in kept if key in found})]


def _front(points: Sequence[FrontPoint], metric: str) -> TextTable:
    columns = ("network", "unimodal logits", metric, "ms", "parameters")
    rows = tuple(
        (
            f"front/{number}",
            "yes" if point.unimodal_logits else "no",
            shown(point.score, ".4f"),
            shown(point.latency_ms, ".4f"),
            shown(point.parameters),
        )
        for number, point in enumerate(points, start=1)
    )
    return TextTable("Front, validation", columns, rows, words=2)


def _details(test: TrainedMetrics) -> dict[str, float]:
    """Return the details of a test; those of a gallery say which modality asks."""
    without = {f"without {name}": score for name, score in test.without.items()}
    found = {**test.details, **without}
    if test.gallery is not None:
        for way, name in zip(("first", "second"), test.gallery.rows, strict=True):
            found = {key.replace(f"by_{way}", f"by_{name}"): own for key, own in found.items()}
    return found


def _own(name: str, own: UnimodalMetrics) -> str:
    """Return the name of a modality's network, with its metric if that is its own."""
    return name if own.metric is None else f"{name} alone, {_words(own.metric)} of words"


def bundle_tables(manifest: Mapping[str, Any]) -> list[TextTable]:
    """Return what a manifest says, a table for each of its sections."""
    kept = {k: v for k, v in manifest.items() if k not in ("genotype", "files", "sha256")}
    sections = {key: value for key, value in kept.items() if isinstance(value, dict)}
    if "latency" in sections:
        # It has a table of its own.
        sections["latency"] = {k: v for k, v in sections["latency"].items() if k != "benchmark"}
    tables = []
    targets = sections.pop("targets", {})
    if targets and all(isinstance(target, dict) for target in targets.values()):
        tables.append(_targets(targets))
    for key in ("inputs", "outputs"):
        tensors = kept.get(key)
        if isinstance(tensors, list) and all(isinstance(t, dict) for t in tensors):
            columns = ("name", "shape", "dtype", "meaning")
            lines = (tuple(shown(t.get(name), limit=160) for name in columns) for t in tensors)
            tables.append(TextTable(f"Bundle {key}", columns, tuple(lines), words=4))
            del kept[key]
    facts = {key: value for key, value in kept.items() if key not in sections}
    named = {f"bundle {key}": section for key, section in sections.items()}
    return [*_sections({"bundle": facts}), *tables, *_sections(named)]


def _targets(targets: Mapping[str, Mapping[str, Any]]) -> TextTable:
    """Return a line for each target: its file, and how it answers validation samples."""
    lines = []
    for name, target in targets.items():
        found = target.get("measured", {})
        same = f"{found['agree']} of {found['samples']}" if "agree" in found else None
        made = (name, target.get("file"), target.get("precision"), found.get("method"))
        says = (found.get("score"), found.get("reference"), same)
        lines.append(tuple(map(shown, (*made, *says))))
    columns = ("target", "file", "precision", "method", "score", "of onnx", "decided the same")
    return TextTable("Bundle targets, on validation", columns, tuple(lines), words=4)


def _table(
    title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, *tuple[Any, ...]]], spec: str
) -> TextTable:
    lines = ((shown(name), *(shown(n, spec) for n in numbers)) for name, *numbers in rows)
    return TextTable(title, columns, tuple(lines))


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Return the values inside nested tables by their place, such as ``search.cells``."""
    if not isinstance(value, Mapping):
        return {place: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{place}.{key}" if place else str(key))
    return found


def _sections(data: Mapping[str, Mapping[str, Any]]) -> list[TextTable]:
    """Return a table a section, with a line for each value at whatever depth."""
    return [
        TextTable(_words(key).capitalize(), ("property", "value"), tuple(lines))
        for key, section in data.items()
        if (lines := [(_words(k), shown(v, limit=160)) for k, v in leaves(section).items()])
    ]


def _words(name: str) -> str:
    return printable(name.replace("_", " ").replace(".", " "))
