"""Runs side by side: one row for runs that differ only in their seed, one group a task."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.record import Document, RunRecord, number, wrong
from bmnas.report.style import measure, plain

#: What two runs must share, the seed aside, to be one row.
_SETTINGS = (
    *("strategy", "fusion", "preset", "search", "train", "unimodal", "seeds"),
    *("hardware", "versions"),
)

_DASH = "–"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the runs of a row; None for a single run."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class ComparisonRow:
    """One configuration on one task. A measure that a run of it lacks is None.

    ``score`` and ``best_unimodal`` are test scores in ``metric``, parameters are counts,
    latencies the medians of batch 1 in milliseconds.
    """

    task: str
    name: str
    seeds: tuple[int, ...]
    metric: str | None
    score: Spread | None
    best_unimodal: Spread | None
    fusion_parameters: Spread | None
    classifier_parameters: Spread | None
    torch_ms: Spread | None
    onnxruntime_ms: Spread | None
    search_seconds: Spread | None
    search_processor_seconds: Spread | None
    gpu_hours: Spread | None


#: Columns of measures: attribute of ComparisonRow, heading, format of a number.
MEASURES = (
    ("score", "test score", ".4f"),
    ("best_unimodal", "best unimodal", ".4f"),
    ("fusion_parameters", "fusion params", ",.0f"),
    ("classifier_parameters", "classifier params", ",.0f"),
    ("torch_ms", "torch ms", ".3g"),
    ("onnxruntime_ms", "onnxruntime ms", ".3g"),
    ("search_seconds", "search s", ".1f"),
    ("search_processor_seconds", "search CPU s", ".1f"),
    ("gpu_hours", "GPU-hours", ".3g"),
)


def comparison_rows(runs: Sequence[RunRecord]) -> list[ComparisonRow]:
    """Return a row for each configuration, tasks together in the order of ``runs``.

    Raises UserError when a run has no config.json or when two runs are equal in
    configuration and seed: counted twice they would feign a small deviation.
    """
    groups: dict[str, dict[str, list[RunRecord]]] = {}
    for run in runs:
        if not run.config.data:
            raise UserError(f"{run.path}: expected config.json, which is missing")
        settings = _settings(run, _SETTINGS)
        by_settings = groups.setdefault(_key(run.config.section("task")), {})
        by_settings.setdefault(_key(settings), []).append(run)
    tasks = _task_names([next(iter(group.values()))[0] for group in groups.values()])
    return [
        _row(task, name, members)
        for task, group in zip(tasks, groups.values(), strict=True)
        for name, members in zip(_row_names(list(group.values())), group.values(), strict=True)
    ]


def format_spread(value: Spread | None, spec: str) -> str:
    """Return mean ± standard deviation, the mean alone for one run, a dash for None."""
    if value is None:
        return _DASH
    mean = measure(value.mean, spec)
    return mean if value.deviation is None else f"{mean} ± {measure(value.deviation, spec)}"


def row_to_dict(row: ComparisonRow) -> dict[str, Any]:
    """Return a row as JSON-ready plain data."""
    measures: dict[str, Any] = {}
    for key, _, _ in MEASURES:
        value: Spread | None = getattr(row, key)
        measures[key] = (
            None if value is None else {"mean": value.mean, "deviation": value.deviation}
        )
    return {
        "task": row.task,
        "name": row.name,
        "seeds": list(row.seeds),
        "metric": row.metric,
        **measures,
    }


def _row(task: str, name: str, runs: Sequence[RunRecord]) -> ComparisonRow:
    members = sorted(runs, key=_seed)
    seeds = [_seed(run) for run in members]
    for before, after in pairwise(members):
        if _seed(before) == _seed(after):
            raise UserError(
                f"{after.path}: received the configuration and seed {_seed(after)} of "
                f"{before.path} again; expected each once, leave one out"
            )
    metrics = {run.metrics.text("metric") for run in members}
    if len(metrics) > 1:
        raise UserError(
            f"{members[-1].path}: expected one metric for runs of {name}, received "
            f"{', '.join(sorted(plain(str(metric)) for metric in metrics))}"
        )

    metric = metrics.pop()

    def spread(*keys: str) -> Spread | None:
        return spread_of([run.metrics.number(*keys) for run in members])

    return ComparisonRow(
        task=task,
        name=name,
        seeds=tuple(seeds),
        metric=metric and plain(metric),
        score=spread("test", "score"),
        best_unimodal=spread_of([_best_unimodal(run.metrics) for run in members]),
        fusion_parameters=spread("parameters", "fusion"),
        classifier_parameters=spread("parameters", "classifier"),
        torch_ms=spread("latency", "torch", "batch_1", "median_ms"),
        onnxruntime_ms=spread("latency", "onnxruntime", "batch_1", "median_ms"),
        search_seconds=spread("seconds", "search"),
        search_processor_seconds=spread("processor_seconds", "search"),
        gpu_hours=spread("seconds", "gpu_hours"),
    )


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return mean and deviation; None when any run lacks the value, as seeds are listed."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def _best_unimodal(metrics: Document) -> float | None:
    names = metrics.section("unimodal")
    scores = [metrics.number("unimodal", name, "test") for name in names]
    return max((score for score in scores if score is not None), default=None)


def _seed(run: RunRecord) -> int:
    seed = run.config.data.get("seed")
    if type(seed) is not int:
        raise wrong(run.config.path, "seed", seed, "an integer")
    return int(number(seed, run.config.path, "seed"))


def _task_names(runs: Sequence[RunRecord]) -> list[str]:
    """Return names that differ: those of the tasks, with their source where two are equal."""
    names = [plain(run.config.text("task", "name") or _DASH) for run in runs]
    return [
        name
        if names.count(name) == 1
        else f"{name} ({_differences(run, _same(runs, names, name), ('task',))})"
        for name, run in zip(names, runs, strict=True)
    ]


def _row_names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Return names that differ: strategies and hand-made fusions, with what differs, if equal."""
    firsts = [members[0] for members in groups]
    names = [
        plain(run.config.text("fusion") or run.config.text("strategy") or _DASH) for run in firsts
    ]
    return [
        name
        if names.count(name) == 1
        else f"{name} ({_differences(run, _same(firsts, names, name), _SETTINGS)})"
        for name, run in zip(names, firsts, strict=True)
    ]


def _same(runs: Sequence[RunRecord], names: Sequence[str], name: str) -> list[RunRecord]:
    return [run for run, other in zip(runs, names, strict=True) if other == name]


def _differences(run: RunRecord, others: Sequence[RunRecord], keys: Sequence[str]) -> str:
    """Return the settings of ``run`` that not all ``others`` share, or else its folder."""
    flat = [dict(_leaves(_settings(other, keys))) for other in (run, *others)]
    own = flat[0]
    differing = [key for key, value in own.items() if any(f.get(key) != value for f in flat)]
    shown = [f"{key.split('.', 1)[-1]} {own[key]}" for key in differing[:3]]
    label = plain(", ".join(shown), 80)
    # Too much to name, or only something that this run lacks: the folder tells them apart.
    return label if shown and len(differing) <= 3 and "…" not in label else plain(str(run.path))


def _settings(run: RunRecord, keys: Sequence[str]) -> dict[str, Any]:
    # A run of one seed does not speak of their number.
    data = {"seeds": 1, **run.config.data}
    # A strategy may have settings of its own, in a section of its name.
    own = [name for name in [data.get("strategy")] if isinstance(name, str) and name in data]
    return {key: _without_seed(data.get(key)) for key in (*keys, *own)}


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _without_seed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if key != "seed"}


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
