"""What a run, a bundle or a comparison measured, as tables for terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from bmnas.report.metrics import LatencyMetrics, RunMetrics
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
    "single_path": "search: single path",
    "screening": "search: screening",
    "rerank": "search: rerank",
    "other": "search: other",
    "search": "search",
    "total": "search, all stages",
    "train_compile": "train: compile",
    "train": "train",
}
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

    def width(self, column: int) -> int:
        """Return how wide a column is drawn in a terminal, with what parts it from the next."""
        from rich.cells import cell_len

        return 3 + max(cell_len(line[column]) for line in (self.columns, *self.rows))


def run_tables(run: RunRecord) -> list[TextTable]:
    """Return scores, sizes, latency and time of a run, without what no stage has measured yet."""
    metrics = run.metrics
    parts = ("fusion", "classifier", "backbones")
    tables = [
        _scores(metrics),
        TextTable(
            "Parameters",
            ("part", "count"),
            tuple((part, _number(metrics.parameters.get(part), ",.0f")) for part in parts),
        ),
        _latency(metrics.latency),
        _search(metrics),
        _times(metrics),
        _memory(metrics),
    ]
    return [table.measured() for table in tables if table.measured().rows]


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
        lines = [
            (
                row.name,
                ", ".join(map(str, row.seeds)),
                *(format_spread(row.measures.get(key), m.spec) for key, m in MEASURES.items()),
            )
            for row in members
        ]
        title = f"{task}, {', '.join(metrics)}" if metrics else task
        tables.append(TextTable(title, columns, tuple(lines), words=2).measured(all_rows=True))
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

    # Names in the tables come from files: they are text, never markup or emoji codes.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    for part in (part for table in tables for part in _parts(table, console.width)):
        drawn = Table(title=part.title, box=box.SIMPLE_HEAD, title_justify="left")
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
    threads = {"torch": latency.threads, "onnxruntime": latency.onnxruntime_threads}
    facts = ["Latency, ms", *(f"{name} {n} threads" for name, n in threads.items() if n)]
    title = "; ".join([*facts, *([printable(latency.hardware, 80)] if latency.hardware else [])])
    return TextTable(title, ("engine", "batch", "median", "p99"), rows, words=2)


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
        seeds = search.seeds
        spread = format_spread(Spread(seeds.mean, seeds.deviation), ".4f")
        rows += [(f"supernets, {len(seeds.validation)} seeds", spread)]
        rows += [("seed of the genotype", str(seeds.best))]
    return TextTable("Search", ("property", "value"), tuple(rows))


def _times(metrics: RunMetrics) -> TextTable:
    # Nothing was compiled: no line of zeros.
    seconds = {k: v for k, v in metrics.seconds.items() if v or not k.endswith("compile")}
    speeds = metrics.samples_per_second
    rows = tuple(
        (name, _number(seconds.get(key), ".1f"), _number(speeds.get(key), ",.0f"))
        for key, name in STAGES.items()
    )
    return TextTable("Time", ("stage", "seconds", "samples/s"), rows)


def _memory(metrics: RunMetrics) -> TextTable:
    rows = tuple(
        (stage, *(_number(n and n / 2**20, ",.0f") for n in (p.resident_bytes, p.device_bytes)))
        for stage in ("search", "train")
        if (p := metrics.peak_memory.get(stage)) is not None
    )
    return TextTable("Peak memory, MiB", ("stage", "resident", "device"), rows)


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
