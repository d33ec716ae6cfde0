"""Runs side by side: one row for runs that differ only in their seed, one group a task."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.metrics import BatchLatency, RunMetrics
from bmnas.report.record import RunRecord
from bmnas.report.style import formatted, printable

DASH = "–"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the runs of a row; None for a single run."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Measure:
    """A column of a comparison: its heading, the format of its numbers, where they are."""

    heading: str
    spec: str
    of: Callable[[RunMetrics], float | None]


def _best_unimodal(metrics: RunMetrics) -> float | None:
    scores = [network.test for network in metrics.unimodal.values() if network.test is not None]
    return max(scores, default=None)


def _median(batches: Mapping[str, BatchLatency]) -> float | None:
    return batches["batch_1"].median_ms if "batch_1" in batches else None


#: Scores are test scores, parameters counts, latencies the medians of batch 1 in milliseconds.
MEASURES: Mapping[str, Measure] = {
    "score": Measure("test score", ".4f", lambda m: m.test_score),
    "best_unimodal": Measure("best unimodal", ".4f", _best_unimodal),
    "fusion_parameters": Measure("fusion params", ",.0f", lambda m: m.parameters.get("fusion")),
    "classifier_parameters": Measure(
        "classifier params", ",.0f", lambda m: m.parameters.get("classifier")
    ),
    "torch_ms": Measure("torch ms", ".3g", lambda m: _median(m.latency.torch)),
    "onnxruntime_ms": Measure("onnxruntime ms", ".3g", lambda m: _median(m.latency.onnxruntime)),
    "search_seconds": Measure("search s", ".1f", lambda m: m.seconds.get("search")),
    "search_processor_seconds": Measure(
        "search CPU s", ".1f", lambda m: m.processor_seconds.get("search")
    ),
    # Nought where there was no GPU.
    "gpu_hours": Measure("GPU-hours", ".3g", lambda m: m.seconds.get("gpu_hours") or None),
}


@dataclass(frozen=True)
class ComparisonRow:
    """One configuration on one task; ``measures`` lacks those that not all of its runs have."""

    task: str
    name: str
    seeds: tuple[int, ...]
    metric: str | None
    measures: Mapping[str, Spread]

    @property
    def score(self) -> Spread | None:
        """The test score in ``metric``."""
        return self.measures.get("score")

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready plain data."""
        data = asdict(self)
        return {**dict.fromkeys(MEASURES), **data.pop("measures"), **data}


def comparison_rows(runs: Sequence[RunRecord]) -> list[ComparisonRow]:
    """Return a row for each configuration, tasks together in the order of ``runs``.

    Raises UserError when a run has no config.json or when two runs are equal in
    configuration and seed: counted twice they would feign a small deviation.
    """
    tasks: dict[str, list[RunRecord]] = {}
    for run in runs:
        if not run.settings:
            raise UserError(f"{run.path}: expected config.json, which is missing")
        tasks.setdefault(str(_flat(run.config.task)), []).append(run)
    firsts = [members[0] for members in tasks.values()]
    names = _names([run.config.task.get("name") for run in firsts], [_task(run) for run in firsts])
    return [
        row
        for task, members in zip(names, tasks.values(), strict=True)
        for row in _rows(task, members)
    ]


def format_spread(value: Spread | None, spec: str) -> str:
    """Return mean ± standard deviation, the mean alone for one run, a dash for None."""
    if value is None:
        return DASH
    mean = formatted(value.mean, spec)
    return mean if value.deviation is None else f"{mean} ± {formatted(value.deviation, spec)}"


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return mean and deviation; None when any run lacks the value, as seeds are listed."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def _rows(task: str, runs: Sequence[RunRecord]) -> list[ComparisonRow]:
    """Return the rows of a task; runs that share all settings but the seed are one."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(str(_how(run)), []).append(run)
    firsts = [members[0] for members in groups.values()]
    ways = [run.config.fusion or run.config.strategy for run in firsts]
    names = _names(ways, [_how(run) for run in firsts])
    return [_row(task, *row) for row in zip(names, groups.values(), strict=True)]


def _row(task: str, name: str, runs: Sequence[RunRecord]) -> ComparisonRow:
    by_seed: dict[int, RunRecord] = {}
    for run in runs:
        seed = run.config.seed
        if seed is None:
            raise UserError(f"{run.path}/config.json: expected the key 'seed', which is missing")
        if seed in by_seed:
            raise UserError(
                f"{run.path}: received the configuration and seed {seed} of "
                f"{by_seed[seed].path} again; expected each once, leave one out"
            )
        by_seed[seed] = run
    metrics = {printable(run.metrics.metric) if run.metrics.metric else None for run in runs}
    if len(metrics) > 1:
        found = ", ".join(sorted(map(str, metrics)))
        raise UserError(
            f"{runs[-1].path}: expected one metric for runs of {name}, received {found}"
        )
    spreads = {key: spread_of([m.of(run.metrics) for run in runs]) for key, m in MEASURES.items()}
    known = {key: spread for key, spread in spreads.items() if spread is not None}
    return ComparisonRow(task, name, tuple(sorted(by_seed)), metrics.pop(), known)


def _names(names: Sequence[Any], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return ``names``, those that are equal with the ``settings`` in which they differ."""
    shown = []
    for name, own in zip(names, settings, strict=True):
        alike = [other for n, other in zip(names, settings, strict=True) if n == name]
        parts = [
            f"{key.partition('.')[2] or key} {own.get(key, DASH)}"
            for key in dict.fromkeys(key for other in alike for key in other)
            if len({other.get(key) for other in alike}) > 1
        ]
        text = printable(str(name or DASH))
        shown.append(f"{text} ({printable(', '.join(parts), 120)})" if parts else text)
    return shown


def _task(run: RunRecord) -> dict[str, str]:
    return _flat({"task": run.config.task})


def _how(run: RunRecord) -> dict[str, str]:
    """Return all settings but the task and the seeds; a run of one search does not count them."""
    kept = {k: v for k, v in run.settings.items() if k not in ("task", "seed", "backbones")}
    flat = _flat({"seeds": 1, **kept})
    return {key: value for key, value in sorted(flat.items()) if not key.endswith(".seed")}


def _flat(value: Any, place: str = "") -> dict[str, str]:
    """Return the values inside nested tables by their place, such as ``search.cells``."""
    if not isinstance(value, Mapping):
        return {place: str(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{place}.{key}" if place else str(key))
    return flat
