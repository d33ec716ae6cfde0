"""What a run, a bundle or a comparison measured, as tables for terminal, Markdown, HTML, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal

from bmnas.report.record import BundleRecord, Document, RunRecord, wrong
from bmnas.report.rows import MEASURES, ComparisonRow, format_spread
from bmnas.report.style import measure, plain

DASH = "–"
#: What the stages in metrics.json are called in tables, in their order.
STAGES = {
    "backbones": "backbones",
    "extraction": "extraction",
    "compile": "search: compile",
    "search_weights": "search: weights",
    "search_architecture": "search: architecture",
    "validation": "search: validation",
    "candidates": "search: candidates",
    "surrogate": "search: surrogate",
    "single_networks": "search: single networks",
    "screening": "search: screening",
    "rerank": "search: rerank",
    "other": "search: other",
    "search": "search",
    "total": "search, all stages",
    "train_compile": "train: compile",
    "train": "train",
}
_MEMORY = ("resident_bytes", "device_bytes")
_WIDTH = 200  # of a table that goes to a file or a pipe


@dataclass(frozen=True)
class TextTable:
    """A title, headings and rows of text; the first ``words`` columns are words, not numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def run_tables(run: RunRecord) -> list[TextTable]:
    """Return scores, sizes, latency and time of a run, without what no stage has measured yet."""
    metrics = run.metrics
    if not metrics.data:
        return []
    tables = [
        _scores(metrics),
        _sizes(metrics),
        _latency(metrics),
        _search(metrics),
        _seconds(metrics),
        _memory(metrics),
    ]
    return [measured for table in tables if (measured := _measured(table)) is not None]


def bundle_tables(bundle: BundleRecord) -> list[TextTable]:
    """Return what goes in, what comes out, and what the manifest reports."""
    manifest = bundle.manifest
    facts = [
        ("name", _text(manifest.data.get("name"))),
        ("task", _text(manifest.section("task").get("name"))),
        ("kind", _text(manifest.section("task").get("kind"))),
        ("classes", _class_names(manifest)),
        ("threshold", _number(manifest.number("threshold"), ".4g")),
    ]
    fusion = manifest.text("fusion", "name")
    if fusion is not None:
        facts.insert(3, ("fusion", plain(fusion)))
    tables = [
        TextTable("Bundle", ("property", "value"), tuple(facts), words=2),
        _tensors(manifest, "inputs"),
        _tensors(manifest, "outputs"),
    ]
    for key in ("scores", "parity", "latency", "versions"):
        rows = tuple((name, _text(value)) for name, value in _leaves(manifest.section(key)))
        if rows:
            tables.append(TextTable(key.capitalize(), ("property", "value"), rows))
    return tables


def comparison_tables(rows: Sequence[ComparisonRow]) -> list[TextTable]:
    """Return one table a task with a line for each of its rows; a measure of none is left out."""
    columns = ("strategy", "seeds", *(heading for _, heading, _ in MEASURES))
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        members = [row for row in rows if row.task == task]
        metrics = dict.fromkeys(row.metric.replace("_", " ") for row in members if row.metric)
        lines = tuple(
            (
                row.name,
                ", ".join(map(str, row.seeds)),
                *(_spread(row, key, spec) for key, _, spec in MEASURES),
            )
            for row in members
        )
        title = f"{task}, {', '.join(metrics)}" if metrics else task
        tables.append(_without_empty_columns(TextTable(title, columns, lines, words=2)))
    return tables


def comparison_csv(rows: Sequence[ComparisonRow]) -> str:
    """Return the rows as CSV with full precision; mean and deviation are columns of their own."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = [key for key, _, _ in MEASURES]
    heads = [head for key in keys for head in (key, f"{key}_deviation")]
    writer.writerow(["task", "name", "seeds", "metric", *heads])
    for row in rows:
        spreads = [getattr(row, key) for key in keys]
        cells = [c for s in spreads for c in ((s.mean, s.deviation) if s else (None, None))]
        seeds = " ".join(map(str, row.seeds))
        # A spreadsheet would run a name that begins like a formula.
        words = [f"'{w}" if w[:1] in "=+-@" else w for w in (row.task, row.name, seeds)]
        writer.writerow([*words, row.metric, *cells])
    return buffer.getvalue()


def markdown(tables: Sequence[TextTable]) -> str:
    """Return the tables as Markdown, each under its title."""
    blocks = []
    for table in tables:
        head = [_markdown_line(table.columns)]
        sides = [":--" if n < table.words else "--:" for n in range(len(table.columns))]
        lines = [*head, f"| {' | '.join(sides)} |", *(_markdown_line(row) for row in table.rows)]
        blocks.append("\n".join([f"### {_markdown_text(table.title)}", "", *lines, ""]))
    return "\n".join(blocks)


def html_tables(tables: Sequence[TextTable]) -> str:
    """Return the tables as HTML; everything in them is escaped."""
    blocks = []
    for table in tables:
        sides = ["" if n < table.words else ' class="number"' for n in range(len(table.columns))]
        head = "".join(
            f"<th{side}>{escape(c)}</th>" for c, side in zip(table.columns, sides, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td{side}>{escape(c)}</td>" for c, side in zip(row, sides, strict=True))
            + "</tr>\n"
            for row in table.rows
        )
        blocks.append(
            f'<div class="scroll"><table>\n<caption>{escape(table.title)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
        )
    return "".join(blocks)


def print_tables(tables: Sequence[TextTable]) -> None:
    """Print the tables to standard output, too wide ones in parts; in a pipe they stay whole."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Names in the tables come from files: they are text, never markup or emoji codes.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        needed = max((_needed(table) for table in tables), default=0)
        console = Console(width=max(_WIDTH, needed), markup=False, emoji=False, highlight=False)
    for table in tables:
        for number, part in enumerate(_parts(table, console.width)):
            title = None if number else part.title
            drawn = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
            for n, column in enumerate(part.columns):
                # Where words must make room, numbers stay on one line.
                short = n >= part.words and _width(part, n) <= console.width // 2
                side: Literal["left", "right"] = "left" if n < part.words else "right"
                drawn.add_column(column, justify=side, overflow="fold", no_wrap=short)
            for row in part.rows:
                drawn.add_row(*row)
            console.print(drawn)


def _parts(table: TextTable, width: int) -> list[TextTable]:
    """Return the table as parts of at most ``width``, the columns of words in each of them.

    These may take half of the width; more of them has to wrap.
    """
    words = list(range(table.words))
    numbers = range(table.words, len(table.columns))
    room = width - 1 - min(sum(_width(table, n) for n in words), width // 2)
    parts: list[list[int]] = [[]]
    for n in numbers:
        if parts[-1] and sum(_width(table, m) for m in (*parts[-1], n)) > room:
            parts.append([])
        parts[-1].append(n)
    return [_columns(table, [*words, *part]) for part in parts]


def _width(table: TextTable, column: int) -> int:
    """Return how wide a column is drawn, with what parts it from the next."""
    from rich.cells import cell_len

    return 3 + max(cell_len(line[column]) for line in (table.columns, *table.rows))


def _needed(table: TextTable) -> int:
    return 4 + sum(_width(table, n) + 1 for n in range(len(table.columns)))


def _scores(metrics: Document) -> TextTable:
    rows = [
        (
            plain(name),
            _number(metrics.number("unimodal", name, "validation"), ".4f"),
            _number(metrics.number("unimodal", name, "test"), ".4f"),
        )
        for name in metrics.section("unimodal")
    ]
    fused = (
        "fused",
        _number(metrics.number("search", "validation"), ".4f"),
        _number(metrics.number("test", "score"), ".4f"),
    )
    metric = plain(metrics.text("metric") or "score").replace("_", " ")
    columns = ("network", "validation (search)", "test")
    mean = metrics.number("test", "unimodal_mean")
    if mean is not None:
        rows.append(("mean of their logits", DASH, _number(mean, ".4f")))
    return TextTable(f"Scores, {metric}", columns, (*rows, fused))


def _sizes(metrics: Document) -> TextTable:
    rows = [
        (name, _number(metrics.number("parameters", name), ",.0f"))
        for name in ("fusion", "classifier", "backbones")
    ]
    return TextTable("Parameters", ("part", "count"), tuple(rows))


def _latency(metrics: Document) -> TextTable:
    rows = [
        (
            plain(engine),
            plain(batch.removeprefix("batch_")),
            _number(metrics.number("latency", engine, batch, "median_ms"), ".3g"),
            _number(metrics.number("latency", engine, batch, "p99_ms"), ".3g"),
        )
        for engine, batches in metrics.section("latency").items()
        if isinstance(batches, dict)
        for batch in metrics.section("latency", engine)
    ]
    where = metrics.section("latency").get("hardware")
    facts = [
        f"{engine} {threads:.0f} threads"
        for engine, key in (("torch", "threads"), ("onnxruntime", "onnxruntime_threads"))
        if (threads := metrics.number("latency", key)) is not None
    ]
    facts += [_text(where)] if where is not None else []
    title = "; ".join(["Latency, ms", *facts])
    columns = ("engine", "batch", "median", "p99")
    return TextTable(title, columns, tuple(rows), words=2)


def _search(metrics: Document) -> TextTable:
    rows = (
        ("strategy", plain(metrics.text("search", "strategy") or DASH)),
        ("best epoch", _number(metrics.number("search", "best_epoch"), ".0f")),
        ("candidate networks", _number(metrics.number("search", "candidates"), ",.0f")),
        ("samples seen", _number(metrics.number("search", "samples_seen"), ",.0f")),
        ("GPU-hours", _number(metrics.number("seconds", "gpu_hours") or None, ".3g")),
        *_over_seeds(metrics),
    )
    return TextTable("Search", ("property", "value"), rows)


def _over_seeds(metrics: Document) -> list[tuple[str, str]]:
    """Return what several seeds at once came to; nothing for a search of one."""
    count = len(metrics.section("search", "seeds", "validation"))
    if not count:
        return []
    mean, deviation, best = (
        metrics.number("search", "seeds", key) for key in ("mean", "deviation", "best")
    )
    spread = f"{_number(mean, '.4f')} ± {_number(deviation, '.4f')}"
    return [(f"supernets, {count} seeds", spread), ("seed of the genotype", _number(best, ".0f"))]


def _seconds(metrics: Document) -> TextTable:
    # Nothing was compiled: no line of zeros.
    zero = {key for key in ("compile", "train_compile") if not metrics.number("seconds", key)}
    rows = [
        (
            name,
            _number(metrics.number("seconds", key), ".1f"),
            _number(metrics.number("samples_per_second", key), ",.0f"),
        )
        for key, name in STAGES.items()
        if key not in zero
    ]
    return TextTable("Time", ("stage", "seconds", "samples/s"), tuple(rows))


def _memory(metrics: Document) -> TextTable:
    rows = [
        (stage, *(_mebibytes(metrics.number("peak_memory", stage, kind)) for kind in _MEMORY))
        for stage in ("search", "train")
    ]
    return TextTable("Peak memory, MiB", ("stage", "resident", "device"), tuple(rows))


def _mebibytes(size: float | None) -> str:
    return _number(None if size is None else size / 2**20, ",.0f")


def _spread(row: ComparisonRow, key: str, spec: str) -> str:
    value = getattr(row, key)
    # No hours of a GPU: there was none.
    nothing = key == "gpu_hours" and value is not None and value.mean == 0
    return format_spread(None if nothing else value, spec)


def _without_empty_columns(table: TextTable) -> TextTable:
    kept = [
        n
        for n in range(len(table.columns))
        if n < table.words or any(row[n] != DASH for row in table.rows)
    ]
    return _columns(table, kept)


def _measured(table: TextTable) -> TextTable | None:
    """Return the table without lines and columns of mere dashes; None when nothing is left."""
    rows = tuple(r for r in table.rows if any(cell != DASH for cell in r[table.words :]))
    return _without_empty_columns(replace(table, rows=rows)) if rows else None


def _columns(table: TextTable, kept: Sequence[int]) -> TextTable:
    rows = tuple(tuple(row[n] for n in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[n] for n in kept), rows=rows)


def _tensors(manifest: Document, key: str) -> TextTable:
    tensors = manifest.data.get(key)
    if not isinstance(tensors, list):
        raise wrong(manifest.path, key, tensors, "a list")
    rows = []
    for n, tensor in enumerate(tensors):
        if not isinstance(tensor, dict):
            raise wrong(manifest.path, f"{key}[{n}]", tensor, "an object")
        rows.append(
            tuple(_text(tensor.get(name), 160) for name in ("name", "shape", "dtype", "meaning"))
        )
    columns = ("name", "shape", "dtype", "meaning")
    return TextTable(key.capitalize(), columns, tuple(rows), words=4)


def _class_names(manifest: Document) -> str:
    names = manifest.data.get("class_names", [])
    if not isinstance(names, list):
        raise wrong(manifest.path, "class_names", names, "a list")
    return plain(f"{len(names)}: {', '.join(_text(name) for name in names[:50])}", 160)


def _leaves(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in data.items():
        name = f"{prefix}{plain(key)}"
        leaves += _leaves(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return leaves


def _text(value: Any, limit: int = 80) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return plain(", ".join(f"{key} {_text(item)}" for key, item in value.items()), limit)
    return plain(str(value), limit)


def _number(value: float | None, spec: str) -> str:
    return DASH if value is None else measure(value, spec)


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_markdown_text(cell) for cell in cells)} |"


def _markdown_text(text: str) -> str:
    return escape(text, quote=False).replace("|", r"\|").replace("`", r"\`")
