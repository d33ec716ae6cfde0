"""Runs side by side: one row for runs that differ only in their seed, one group a task."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.report.metrics import BatchLatency, RunMetrics
from bmnas.report.record import RunRecord
from bmnas.report.style import formatted, printable

#: What two runs must share, the seed aside, to be one row.
_SETTINGS = (
    *("strategy", "fusion", "preset", "search", "train", "unimodal", "seeds"),
    *("hardware", "versions"),
)

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
    "gpu_hours": Measure("GPU-hours", ".3g", lambda m: m.seconds.get("gpu_hours")),
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
        measures = {key: self.measures.get(key) for key in MEASURES}
        return {
            "task": self.task,
            "name": self.name,
            "seeds": list(self.seeds),
            "metric": self.metric,
            **{key: None if value is None else vars(value) for key, value in measures.items()},
        }


def comparison_rows(runs: Sequence[RunRecord]) -> list[ComparisonRow]:
    """Return a row for each configuration, tasks together in the order of ``runs``.

    Raises UserError when a run has no config.json or when two runs are equal in
    configuration and seed: counted twice they would feign a small deviation.
    """
    groups: dict[str, dict[str, list[RunRecord]]] = {}
    for run in runs:
        if not run.settings:
            raise UserError(f"{run.path}: expected config.json, which is missing")
        by_settings = groups.setdefault(_key(run.config.task), {})
        by_settings.setdefault(_key(_settings(run, _SETTINGS)), []).append(run)
    tasks = _names(
        [next(iter(group.values()))[0] for group in groups.values()],
        ("task",),
        lambda run: str(run.config.task.get("name", DASH)),
    )
    rows = []
    for task, group in zip(tasks, groups.values(), strict=True):
        names = _names(
            [members[0] for members in group.values()],
            _SETTINGS,
            lambda run: run.config.fusion or run.config.strategy,
        )
        rows += [_row(task, *row) for row in zip(names, group.values(), strict=True)]
    return rows


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
    metrics = {run.metrics.metric for run in runs}
    if len(metrics) > 1:
        raise UserError(
            f"{runs[-1].path}: expected one metric for runs of {name}, received "
            f"{', '.join(sorted(printable(str(metric)) for metric in metrics))}"
        )
    metric = metrics.pop()
    spreads = {
        key: spread_of([column.of(run.metrics) for run in runs]) for key, column in MEASURES.items()
    }
    return ComparisonRow(
        task,
        name,
        tuple(sorted(by_seed)),
        metric and printable(metric),
        {key: spread for key, spread in spreads.items() if spread is not None},
    )


def _names(
    runs: Sequence[RunRecord], keys: Sequence[str], name_of: Callable[[RunRecord], str | None]
) -> list[str]:
    """Return names that differ: those of ``name_of``, with what differs where two are equal."""
    names = [printable(name_of(run) or DASH) for run in runs]
    alike = {
        name: [run for run, other in zip(runs, names, strict=True) if other == name]
        for name in names
    }
    return [
        name if len(alike[name]) == 1 else f"{name} ({_differences(run, alike[name], keys)})"
        for name, run in zip(names, runs, strict=True)
    ]


def _differences(run: RunRecord, others: Sequence[RunRecord], keys: Sequence[str]) -> str:
    """Return the settings of ``run`` that not all ``others`` share, or else its folder."""
    own, *flat = (dict(_leaves(_settings(other, keys))) for other in (run, *others))
    differing = [key for key, value in own.items() if any(f.get(key) != value for f in flat)]
    label = printable(", ".join(f"{key.split('.', 1)[-1]} {own[key]}" for key in differing), 80)
    # Too much to name, or only something that this run lacks: the folder tells them apart.
    return label if 0 < len(differing) <= 3 and "…" not in label else printable(str(run.path))


def _settings(run: RunRecord, keys: Sequence[str]) -> dict[str, Any]:
    # A run of one seed does not speak of their number.
    data = {"seeds": 1, **run.settings}
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
    return {k: v for k, v in value.items() if k != "seed"} if isinstance(value, dict) else value


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
