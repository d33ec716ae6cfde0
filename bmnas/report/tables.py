"""What a run, a bundle or a comparison measured, as tables for terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from bmnas.report.metrics import LatencyMetrics, MemoryPeak, RunMetrics
from bmnas.report.record import BundleRecord, RunRecord
from bmnas.report.rows import DASH, MEASURES, ComparisonRow, Spread, format_spread
from bmnas.report.style import formatted, printable

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
_WIDTH = 200  # at least, of a table that goes to a file or a pipe


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

    def measured(self) -> TextTable:
        """Return the table without the columns of numbers that hold mere dashes."""
        columns = range(len(self.columns))
        filled = [n for n in columns if any(row[n] != DASH for row in self.rows)]
        return self.only([n for n in columns if n < self.words or n in filled])

    def width(self, column: int) -> int:
        """Return how wide a column is drawn in a terminal, with what parts it from the next."""
        from rich.cells import cell_len

        return 3 + max(cell_len(line[column]) for line in (self.columns, *self.rows))


def run_tables(run: RunRecord) -> list[TextTable]:
    """Return scores, sizes, latency and time of a run, without what no stage has measured yet."""
    metrics = run.metrics
    parts = ("fusion", "classifier", "backbones")
    sizes = tuple((part, _number(metrics.parameters.get(part), ",.0f")) for part in parts)
    # Nothing was compiled: no line of zeros.
    zero = {key for key in ("compile", "train_compile") if not metrics.seconds.get(key)}
    times = tuple(
        (
            name,
            _number(metrics.seconds.get(key), ".1f"),
            _number(metrics.samples_per_second.get(key), ",.0f"),
        )
        for key, name in STAGES.items()
        if key not in zero
    )
    tables = [
        _scores(metrics),
        TextTable("Parameters", ("part", "count"), sizes),
        _latency(metrics.latency),
        _search(metrics),
        TextTable("Time", ("stage", "seconds", "samples/s"), times),
        _memory(metrics),
    ]
    found = []
    for table in tables:
        rows = tuple(row for row in table.rows if set(row[table.words :]) != {DASH})
        if rows:
            found.append(replace(table, rows=rows).measured())
    return found


def bundle_tables(bundle: BundleRecord) -> list[TextTable]:
    """Return what goes in, what comes out, and what the manifest reports."""
    manifest = bundle.manifest
    names = manifest.class_names
    facts = [
        ("name", _text(manifest.name)),
        ("task", _text(manifest.task.get("name"))),
        ("kind", _text(manifest.task.get("kind"))),
        *([("fusion", _text(manifest.fusion.get("name")))] if manifest.fusion is not None else []),
        ("classes", printable(f"{len(names)}: {', '.join(map(_text, names[:50]))}", 160)),
        ("threshold", _number(manifest.threshold, ".4g")),
    ]
    tables = [TextTable("Bundle", ("property", "value"), tuple(facts), words=2)]
    for title, tensors in (("Inputs", manifest.inputs), ("Outputs", manifest.outputs)):
        columns = ("name", "shape", "dtype", "meaning")
        rows = tuple(tuple(_text(t.get(key), 160) for key in columns) for t in tensors)
        tables.append(TextTable(title, columns, rows, words=4))
    for key in ("scores", "parity", "latency", "versions"):
        rows = tuple((name, _text(value)) for name, value in _leaves(getattr(manifest, key)))
        if rows:
            tables.append(TextTable(key.capitalize(), ("property", "value"), rows))
    return tables


def comparison_tables(rows: Sequence[ComparisonRow]) -> list[TextTable]:
    """Return one table a task with a line for each of its rows; a measure of none is left out."""
    columns = ("strategy", "seeds", *(column.heading for column in MEASURES.values()))
    tables = []
    for task in dict.fromkeys(row.task for row in rows):
        members = [row for row in rows if row.task == task]
        metrics = dict.fromkeys(row.metric.replace("_", " ") for row in members if row.metric)
        lines = []
        for row in members:
            spreads = {key: row.measures.get(key) for key in MEASURES}
            hours = spreads["gpu_hours"]
            if hours is not None and hours.mean == 0:  # there was no GPU
                spreads["gpu_hours"] = None
            cells = [format_spread(spreads[key], MEASURES[key].spec) for key in MEASURES]
            lines.append((row.name, ", ".join(map(str, row.seeds)), *cells))
        title = f"{task}, {', '.join(metrics)}" if metrics else task
        tables.append(TextTable(title, columns, tuple(lines), words=2).measured())
    return tables


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

    widths = [sum(map(table.width, range(len(table.columns)))) + 40 for table in tables]
    # Names in the tables come from files: they are text, never markup or emoji codes.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(_WIDTH, *widths) if widths else _WIDTH
    for table in tables:
        for number, part in enumerate(_parts(table, console.width)):
            title = None if number else part.title
            drawn = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
            for n, column in enumerate(part.columns):
                # Where words must make room, numbers stay on one line.
                short = n >= part.words and part.width(n) <= console.width // 2
                side: Any = "left" if n < part.words else "right"
                drawn.add_column(column, justify=side, overflow="fold", no_wrap=short)
            for row in part.rows:
                drawn.add_row(*row)
            console.print(drawn)


def _parts(table: TextTable, width: int) -> list[TextTable]:
    """Return the table as parts of at most ``width``, the columns of words in each of them.

    These may take half of the width; more of them has to wrap.
    """
    words = list(range(table.words))
    room = width - 1 - min(sum(map(table.width, words)), width // 2)
    parts: list[list[int]] = [[]]
    for n in range(table.words, len(table.columns)):
        if parts[-1] and sum(map(table.width, (*parts[-1], n))) > room:
            parts.append([])
        parts[-1].append(n)
    return [table.only([*words, *part]) for part in parts]


def _scores(metrics: RunMetrics) -> TextTable:
    rows = [
        (printable(name), _number(network.validation, ".4f"), _number(network.test, ".4f"))
        for name, network in metrics.unimodal.items()
    ]
    mean = None if metrics.test is None else metrics.test.unimodal_mean
    rows.append(("mean of their logits", DASH, _number(mean, ".4f")))
    fused = (metrics.validation_score, metrics.test_score)
    rows.append(("fused", _number(fused[0], ".4f"), _number(fused[1], ".4f")))
    metric = printable(metrics.metric or "score").replace("_", " ")
    return TextTable(f"Scores, {metric}", ("network", "validation (search)", "test"), tuple(rows))


def _latency(latency: LatencyMetrics) -> TextTable:
    rows = tuple(
        (
            engine,
            printable(batch.removeprefix("batch_")),
            _number(found.median_ms, ".3g"),
            _number(found.p99_ms, ".3g"),
        )
        for engine in ("torch", "onnxruntime")
        for batch, found in getattr(latency, engine).items()
    )
    facts = ["Latency, ms"]
    if latency.threads is not None:
        facts.append(f"torch {latency.threads} threads")
    if latency.onnxruntime_threads is not None:
        facts.append(f"onnxruntime {latency.onnxruntime_threads} threads")
    if latency.hardware is not None:
        facts.append(printable(latency.hardware, 80))
    return TextTable("; ".join(facts), ("engine", "batch", "median", "p99"), rows, words=2)


def _search(metrics: RunMetrics) -> TextTable:
    search, rows = metrics.search, []
    if search is not None:
        rows = [
            ("strategy", printable(search.strategy or DASH)),
            ("best epoch", _number(search.best_epoch, ".0f")),
            ("best candidate", _number(search.best_candidate, ".0f")),
            ("candidate networks", _number(search.candidates, ",.0f")),
            ("samples seen", _number(search.samples_seen, ",.0f")),
        ]
    rows.append(("GPU-hours", _number(metrics.seconds.get("gpu_hours") or None, ".3g")))
    if search is not None and search.seeds is not None:
        spread = Spread(search.seeds.mean, search.seeds.deviation)
        count = len(search.seeds.validation)
        rows.append((f"supernets, {count} seeds", format_spread(spread, ".4f")))
        rows.append(("seed of the genotype", str(search.seeds.best)))
    return TextTable("Search", ("property", "value"), tuple(rows))


def _memory(metrics: RunMetrics) -> TextTable:
    rows = []
    for stage in ("search", "train"):
        peak = metrics.peak_memory.get(stage, MemoryPeak())
        sizes = (peak.resident_bytes, peak.device_bytes)
        rows.append((stage, *(_number(size and size / 2**20, ",.0f") for size in sizes)))
    return TextTable("Peak memory, MiB", ("stage", "resident", "device"), tuple(rows))


def _leaves(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in data.items():
        name = f"{prefix}{printable(key)}"
        leaves += _leaves(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return leaves


def _text(value: Any, limit: int = 80) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return printable(", ".join(f"{key} {_text(item)}" for key, item in value.items()), limit)
    return printable(str(value), limit)


def _number(value: float | None, spec: str) -> str:
    return DASH if value is None else formatted(value, spec)
