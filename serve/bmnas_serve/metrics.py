"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bmnas_serve.batcher import Run
from bmnas_serve.bodies import Bodies
from bmnas_serve.lifecycle import Lifecycle
from bmnas_serve.repository import Repository

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ("model", "version")


class Metrics:
    """Counts of requests and runs, since the server started."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

        def histogram(
            name: str, help_: str, labels: tuple[str, ...], buckets: tuple[float, ...]
        ) -> Histogram:
            return Histogram(name, help_, labels, buckets=buckets, registry=self._registry)

        self._requests = Counter(
            "bmnas_requests",
            "Requests by what was asked and the status of the answer",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self._seconds = histogram(
            "bmnas_request_seconds", "Time of a request in the server", ("endpoint",), _SECONDS
        )
        self._waits = histogram(
            "bmnas_queue_seconds", "Time that a request waited for the model", _MODEL, _SECONDS
        )
        self._runs = histogram("bmnas_run_seconds", "Time of a run of the model", _MODEL, _SECONDS)
        self._rows = histogram("bmnas_run_rows", "Rows of a run of the model", _MODEL, _ROWS)
        self._failures = Counter(
            "bmnas_failures",
            "Requests that a run of the model failed on",
            _MODEL,
            registry=self._registry,
        )

        # labels() takes as long as the counting
        self._answers: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._of_runs: dict[tuple[str, str], tuple[Histogram, Histogram, Histogram]] = {}

    def watch(self, repository: Repository, lifecycle: Lifecycle, bodies: Bodies) -> None:
        """Count the runs of a repository, and read from all three what is in them at the moment."""
        self._registry.register(_Now(repository, lifecycle, bodies))
        repository.watch = self.ran

    def answered(self, endpoint: str, status: str, seconds: float) -> None:
        """Count a request."""
        key = endpoint, status
        if key not in self._answers:
            self._answers[key] = self._requests.labels(*key), self._seconds.labels(endpoint)
        count, time = self._answers[key]
        count.inc()
        time.observe(seconds)

    def ran(self, model: str, version: str, run: Run) -> None:
        """Count a run of a model."""
        key = model, version
        if key not in self._of_runs:
            found = self._waits.labels(*key), self._runs.labels(*key), self._rows.labels(*key)
            self._of_runs[key] = found
        waits, seconds, rows = self._of_runs[key]
        for wait in run.waits:
            waits.observe(wait)
        seconds.observe(run.seconds)
        rows.observe(run.rows)
        if run.failures:
            self._failures.labels(model, version).inc(run.failures)

    def text(self) -> bytes:
        """Return all in the format of ``CONTENT_TYPE``."""
        return generate_latest(self._registry)


class _Now(Collector):
    def __init__(self, repository: Repository, lifecycle: Lifecycle, bodies: Bodies) -> None:
        self._repository = repository
        self._lifecycle = lifecycle
        self._bodies = bodies

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "bmnas_queue_rows", "Rows that wait for the model", labels=_MODEL
        )
        for served in self._repository.served():
            waiting.add_metric((served.name, served.version), served.batcher.waiting)
        yield waiting
        yield GaugeMetricFamily(
            "bmnas_in_flight", "Requests that are being answered", self._lifecycle.requests.number
        )
        yield GaugeMetricFamily(
            "bmnas_body_bytes", "Bytes of bodies in memory, but for small ones", self._bodies.held
        )
        yield GaugeMetricFamily(
            "bmnas_ready", "1 while requests are welcome", self._lifecycle.ready
        )
