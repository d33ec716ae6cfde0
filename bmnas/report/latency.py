"""How long the forms of a network take, as ``export --benchmark`` timed it: table and bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from bmnas.machine.schema import Range, read
from bmnas.report.style import INK, PALETTE, Part, short_ticks
from bmnas.report.tables import TextTable, shown

#: The one that others are compared with.
EAGER = "torch"

_WIDTH, _HEIGHT = 10.0, 2.6


@dataclass(frozen=True)
class TimedRun:
    """The median and the 99th percentile of one run of ``batch`` samples, in milliseconds."""

    target: str
    threads: int
    batch: int
    median_ms: Annotated[float, Range(0, 1e300)]
    p99_ms: Annotated[float, Range(0, 1e300)]
    repeats: int


@dataclass(frozen=True)
class Benchmark:
    """The member ``benchmark`` of a manifest's ``latency``."""

    runs: tuple[TimedRun, ...] = ()

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Benchmark:
        """Return that of a manifest, empty where nothing was timed; raises UserError."""
        latency = manifest.get("latency")
        found = latency.get("benchmark", {}) if isinstance(latency, Mapping) else {}
        return read(cls, found, "manifest.json: latency.benchmark", ignore_unknown=True)

    def median(self, target: str, threads: int, batch: int) -> float | None:
        """Return the median of a run, None where it was not timed."""
        for run in self.runs:
            if (run.target, run.threads, run.batch) == (target, threads, batch):
                return run.median_ms
        return None

    @property
    def targets(self) -> tuple[str, ...]:
        """What was timed, in order."""
        return tuple(dict.fromkeys(run.target for run in self.runs))

    @property
    def threads(self) -> tuple[int, ...]:
        """The numbers of threads."""
        return tuple(sorted({run.threads for run in self.runs}))

    @property
    def batches(self) -> tuple[int, ...]:
        """The numbers of samples in a run."""
        return tuple(sorted({run.batch for run in self.runs}))


def latency_tables(manifest: Mapping[str, Any]) -> list[TextTable]:
    """Return a table for each number of threads: medians, and how many times faster than torch."""
    found, tables = Benchmark.of(manifest), []
    for threads in found.threads:
        rows = []
        for target in found.targets:
            cells: list[str] = []
            for batch in found.batches:
                time, eager = (found.median(t, threads, batch) for t in (target, EAGER))
                ratio = eager / time if time and eager else None
                cells += [shown(time, ".3g"), shown(ratio, ".1f")]
            rows.append((target, *cells))
        columns = [name for batch in found.batches for name in (f"batch {batch}", "× torch")]
        unit = "1 thread" if threads == 1 else f"{threads} threads"
        tables.append(TextTable(f"Milliseconds, {unit}", ("target", *columns), tuple(rows)))
    return tables


def latency_parts(manifest: Mapping[str, Any]) -> list[Part]:
    """Return bars of the medians, a panel for each number of threads; none where nothing was."""
    found = Benchmark.of(manifest)
    if not found.runs:
        return []

    def paint(onto: Any) -> None:
        onto.suptitle("Latency: median of one run", fontsize=10, fontweight="bold")
        panels = onto.subplots(1, len(found.threads), sharey=True, squeeze=False)[0]
        width = 0.8 / len(found.targets)
        for axes, threads in zip(panels, found.threads, strict=True):
            for place, target in enumerate(found.targets):
                timed = [
                    (n + place * width, ms)
                    for n, batch in enumerate(found.batches)
                    if (ms := found.median(target, threads, batch)) is not None
                ]
                colour = PALETTE[place % len(PALETTE)]
                axes.bar(*zip(*timed, strict=True), width * 0.92, color=colour, label=target)
                for x, ms in timed:
                    text = shown(ms, ".3g")
                    axes.text(x, ms, text, ha="center", va="bottom", fontsize=6, color=INK)
            axes.set_yscale("log")
            short_ticks(axes.yaxis, log=True)
            axes.margins(y=0.15)
            middle = (len(found.targets) - 1) * width / 2
            ticks = [n + middle for n in range(len(found.batches))]
            axes.set_xticks(ticks, [f"batch {batch}" for batch in found.batches])
            axes.set_title("1 thread" if threads == 1 else f"{threads} threads", fontsize=8)
        panels[0].set_ylabel("milliseconds")
        legend = panels[0].get_legend_handles_labels()
        onto.legend(*legend, loc="outside lower center", ncols=len(found.targets))

    return [Part(_WIDTH, _HEIGHT, paint)]
