"""What was answered, and how long it took: the protocol's statistics extension."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Self

from bmnas_serve.batcher import Run


@dataclass
class Duration:
    """How often something was done, and the nanoseconds that it took in total."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count it ``count`` times more."""
        self.count += count
        self.ns += ns

    def to_dict(self) -> dict[str, int]:
        """Return JSON-ready plain data."""
        return {"count": self.count, "ns": self.ns}


class Laps:
    """A request, and its steps in nanoseconds: ``lap`` ends one, the end of the block the last."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._start = self._last = time.perf_counter_ns()
        self.steps: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.lap()
        counts = self._statistics
        if error is None:
            counts.compute_input.add(self.steps[0])
            counts.compute_output.add(self.steps[-1])
        (counts.success if error is None else counts.fail).add(self._last - self._start)

    def lap(self) -> None:
        """End a step."""
        now = time.perf_counter_ns()
        self.steps.append(now - self._last)
        self._last = now


@dataclass
class Statistics:
    """The counts of one version of a model, since the server started.

    ``success`` and ``fail`` count requests and their whole time, ``queue`` how long requests
    waited for a run, ``compute_input`` and ``compute_output`` how long they took to be decoded and
    answered, ``compute_infer`` the run that each request was a part of. ``runs`` holds the runs of
    the model by their number of rows.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    runs: dict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))
    last_inference_ms: int = 0

    def request(self) -> Laps:
        """Count a request; the block ends a lap after its decoding, and one after the run."""
        return Laps(self)

    def ran(self, run: Run) -> None:
        """Count a run of the model."""
        took, requests = round(run.seconds * 1e9), len(run.waits)
        self.runs[run.rows].add(took)
        self.compute_infer.add(took * requests, requests)
        self.queue.add(round(sum(run.waits) * 1e9), requests)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def to_dict(self) -> dict[str, Any]:
        """Return the protocol's statistics as JSON-ready plain data, but for name and version.

        Times of input and output are those of requests, so ``batch_stats`` have none.
        """
        durations = {
            "success": self.success,
            "fail": self.fail,
            "queue": self.queue,
            "compute_input": self.compute_input,
            "compute_infer": self.compute_infer,
            "compute_output": self.compute_output,
        }
        return {
            "last_inference": self.last_inference_ms,
            "inference_count": sum(rows * run.count for rows, run in self.runs.items()),
            "execution_count": sum(run.count for run in self.runs.values()),
            "inference_stats": {name: found.to_dict() for name, found in durations.items()},
            "batch_stats": [
                {"batch_size": rows, "compute_infer": self.runs[rows].to_dict()}
                for rows in sorted(self.runs)
            ],
        }
