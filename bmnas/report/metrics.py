"""metrics.json: what the stages of a run measured, as written by them and read by everybody.

A stage adds its part, so what has not been measured yet is None or empty, and the file leaves it
out. Scores are at most 1, in ``metric``; seconds, speeds and memory go by the names of stages
(``docs/performance.md``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from bmnas.machine.files import read_json, write_json
from bmnas.machine.schema import NotEmpty, Range, plain, read
from bmnas.training.settings import Confusion, Weighing

#: What earlier versions called stage ``single_path``.
_EARLIER_SINGLE_PATH = "single_networks"

#: More make a picture that nobody can read.
MOST_CLASSES = 40

#: What can be computed with and drawn: neither NaN nor without end.
Number = Annotated[float, Range(-1e300, 1e300)]

#: The stages by which seconds and speeds go, in the order of tables.
STAGES = (
    *("backbones", "extraction", "compile", "search_weights", "search_architecture"),
    *("validation", "candidates", "single_path", "screening", "rerank"),
    *("other", "search", "total", "train_compile", "train"),
)


@dataclass(frozen=True)
class UnimodalMetrics:
    """A modality's own network: scores on validation and test, number of weights.

    They are in ``metric`` where the network has learned something else than the task.
    """

    validation: Number | None = None
    test: Number | None = None
    parameters: int | None = None
    metric: str | None = None


@dataclass(frozen=True)
class SeedsMetrics:
    """What the supernets of several seeds reached, before any short training, by seed."""

    best: int
    mean: Number
    deviation: Number
    validation: Mapping[str, Number] = field(default_factory=dict)
    best_epoch: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetMetrics:
    """The limits of a search, and what the network that it found costs once it is served.

    Latency of one sample, one thread; ``unimodal_logits`` says whether those are in it.
    """

    max_latency_ms: Number | None = None
    max_parameters: Number | None = None
    predicted_ms: Number | None = None
    measured_ms: Number | None = None
    parameters: int | None = None
    unimodal_logits: bool | None = None


@dataclass(frozen=True)
class FrontPoint:
    """A network that no other of the search is better than in score, latency and weights.

    Its run folder is ``front/<number>``, from 1.
    """

    score: Number
    latency_ms: Number
    parameters: int
    unimodal_logits: bool = False


@dataclass(frozen=True)
class SearchMetrics:
    """What was found: the validation score by which it was kept, and what that took.

    A strategy that trains nothing but candidates has a ``best_candidate``, others a ``best_epoch``;
    ``threshold`` is the one that suits validation best, None for tasks without.
    """

    validation: Number
    strategy: str | None = None
    best_epoch: int | None = None
    best_candidate: int | None = None
    candidates: int | None = None
    samples_seen: int | None = None
    threshold: Number | None = None
    seeds: SeedsMetrics | None = None
    target: TargetMetrics | None = None
    front: tuple[FrontPoint, ...] = ()


@dataclass(frozen=True)
class GalleryMetrics:
    """The gallery that a matching task was tested on: its ``rows`` of each of the two modalities.

    ``of`` so many that the test part has: where those are more, ranks are better than in all of it.
    """

    rows: Mapping[str, int]
    of: Mapping[str, int]


@dataclass(frozen=True)
class TrainedMetrics:
    """The trained network on the test part, and the mean of the unimodal networks' logits.

    ``calibration_error`` is the expected one, a fraction (see ``training/heads.py``); ``macro_f1``
    is that of tasks with labels, ``by_type`` the scores of each of ``Task.types``,
    ``details`` what else its head tells, by name, ``without`` the score where all test samples lack
    a modality that they may lack; ``gallery`` is that of a matching task,
    ``confusion`` that of tasks with up to ``MOST_CLASSES`` classes.
    """

    score: Number
    loss: Number | None = None
    samples: int | None = None
    unimodal_mean: Number | None = None
    calibration_error: Number | None = None
    macro_f1: Number | None = None
    by_type: Mapping[str, Number] = field(default_factory=dict)
    details: Mapping[str, Number] = field(default_factory=dict)
    without: Mapping[str, Number] = field(default_factory=dict)
    gallery: GalleryMetrics | None = None
    confusion: Confusion | None = None


@dataclass(frozen=True)
class Drop:
    """How far a score falls when a part is shuffled: mean and sample deviation over repeats."""

    mean: Number
    deviation: Number


@dataclass(frozen=True)
class ImportanceMetrics:
    """What each part is worth, see ``pipeline/importance.py``: drops of ``score`` by modality.

    Those of ``features`` are of the features that the fusion network reads.
    """

    score: Number
    samples: int
    repeats: int
    modalities: Mapping[str, Drop] = field(default_factory=dict)
    features: Mapping[str, Drop] = field(default_factory=dict)


@dataclass(frozen=True)
class RobustnessMetrics:
    """Test scores while the inputs of one modality are degraded, see ``pipeline/robustness.py``.

    ``scores`` are those at each of ``strengths``: standard deviations of noise, or the share of
    words left out; ``missing`` is the score without the modality.
    """

    kind: Literal["noise", "words"]
    strengths: Annotated[tuple[Number, ...], NotEmpty()]
    scores: tuple[Number, ...]
    missing: Number

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is missing."""
        if len(self.scores) != len(self.strengths):
            yield "scores", f"received {len(self.scores)}, expected {len(self.strengths)}"


@dataclass(frozen=True)
class BatchLatency:
    """Median and 99th percentile of one run, in milliseconds."""

    median_ms: Number
    p99_ms: Number | None = None
    repeats: int | None = None


@dataclass(frozen=True)
class LatencyMetrics:
    """Latency by batch, ``batch_1`` and ``batch_64``, in torch and in onnxruntime.

    ``threads`` are those of torch, which ``compiled`` says was compiled or not.
    """

    torch: Mapping[str, BatchLatency] = field(default_factory=dict)
    onnxruntime: Mapping[str, BatchLatency] = field(default_factory=dict)
    compiled: bool | None = None
    threads: int | None = None
    onnxruntime_threads: int | None = None
    hardware: str | None = None


@dataclass(frozen=True)
class MemoryPeak:
    """The most memory that a stage had, of the process and of the accelerator."""

    resident_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class RunMetrics:
    """The whole file. ``parameters`` are those of ``fusion``, ``classifier`` and ``backbones``."""

    metric: str | None = None
    unimodal: Mapping[str, UnimodalMetrics] = field(default_factory=dict)
    search: SearchMetrics | None = None
    test: TrainedMetrics | None = None
    weighing: Weighing | None = None
    importance: ImportanceMetrics | None = None
    robustness: Mapping[str, RobustnessMetrics] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    latency: LatencyMetrics = field(default_factory=LatencyMetrics)
    seconds: Mapping[str, Number] = field(default_factory=dict)
    processor_seconds: Mapping[str, Number] = field(default_factory=dict)
    samples_per_second: Mapping[str, Number] = field(default_factory=dict)
    peak_memory: Mapping[str, MemoryPeak] = field(default_factory=dict)

    @property
    def validation_score(self) -> float | None:
        """The score by which the network that was found was kept."""
        return None if self.search is None else self.search.validation

    @property
    def test_score(self) -> float | None:
        """The trained network's."""
        return None if self.test is None else self.test.score

    @property
    def alone(self) -> dict[str, UnimodalMetrics]:
        """The unimodal networks that have learned the task, not something else, by modality."""
        return {name: own for name, own in self.unimodal.items() if own.metric is None}

    @classmethod
    def load(cls, path: Path) -> RunMetrics:
        """Read the file ``path``, nothing measured where there is none; raises UserError.

        Keys of later versions are passed over.
        """
        if not path.is_file():
            return cls()
        data = read_json(path)
        for section in ("seconds", "samples_per_second"):
            stages = data.get(section) if isinstance(data, dict) else None
            if isinstance(stages, dict) and _EARLIER_SINGLE_PATH in stages:
                stages["single_path"] = stages.pop(_EARLIER_SINGLE_PATH)
        return read(cls, data, str(path), ignore_unknown=True)

    def save(self, path: Path) -> None:
        """Write the file ``path``, whole or not at all."""
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured as JSON-ready plain data, as in the file."""
        found: dict[str, Any] = _without_nothing(plain(self))
        return found

    def with_also(self, found: RunMetrics) -> RunMetrics:
        """Return these with ``found`` added, which counts where both have something."""
        merged = self.to_dict()
        for name, value in found.to_dict().items():
            merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
        return read(RunMetrics, merged)

    def only(self, *sections: str) -> RunMetrics:
        """Return the given sections alone."""
        return RunMetrics(**{name: getattr(self, name) for name in sections})

    def without(self, *sections: str) -> RunMetrics:
        """Return all but the given sections."""
        return self.only(*(f.name for f in fields(self) if f.name not in sections))


def _without_nothing(value: Any) -> Any:
    """Return plain data without keys whose value is None or an empty object."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_nothing(inner) for key, inner in value.items()}
    return {key: inner for key, inner in kept.items() if inner is not None and inner != {}}
