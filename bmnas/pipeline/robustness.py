"""How a trained network does on the test part while the inputs of a modality are degraded.

Numbers get Gaussian noise, in standard deviations of train; texts lose words; or a modality is
missing: every row is the mean of train, an empty text, or, of a modality that samples may lack,
what stands for that. This follows no paper; nothing is chosen by it.

Legend: n rows, T tokens of a row; axes are those of a row, see ``ROW_AXES``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bmnas.features.samples import nothing_of
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.multimodal import Change, evaluate_fusion
from bmnas.pipeline.trained import TrainedNetwork
from bmnas.report.metrics import RobustnessMetrics
from bmnas.tasks.rows import pieces
from bmnas.tasks.task import Array, Modality, ModalityType, Task

_NOISE = (0.25, 0.5, 1.0, 2.0)
_WORDS = (0.1, 0.25, 0.5, 0.75)
#: Over which axes of a row the standard deviation is taken: columns keep their own.
_POOLED: dict[ModalityType, tuple[int, ...]] = {"vector": (), "sequence": (0,), "regions": (0,)}


def measure_robustness(
    trained: TrainedNetwork, task: Task, runtime: Runtime
) -> dict[str, RobustnessMetrics]:
    """Return the test scores of ``trained`` under each degradation, by modality of ``task``.

    Noise and words are drawn from a fixed seed, the same for every network and every strength.
    """
    network, head = trained.network.to(runtime.device), trained.task.head

    def score(changes: Mapping[str, Change]) -> float:
        return evaluate_fusion(task, network, "test", head, runtime, changes).score

    found, intact = {}, score({})
    for modality in task.modalities:
        name, worded = modality.name, modality.type in ("text", "tokens")
        strengths = _WORDS if worded else _NOISE
        if worded:
            changes = [words_left_out(share) for share in strengths]
            missing = words_left_out(1.0)
        else:
            mean, deviation = train_statistics(task, modality)
            changes = [noise(strength * deviation) for strength in strengths]
            missing = replaced_by(mean) if modality.absent is None else nothing_of
        degraded = [score({name: change}) for change in (*changes, missing)]
        found[name] = RobustnessMetrics(
            kind="words" if worded else "noise",
            strengths=(0.0, *strengths),
            scores=(intact, *degraded[:-1]),
            missing=degraded[-1],
        )
    return found


def train_statistics(task: Task, modality: Modality) -> tuple[Array, Array]:
    """Return the mean (*axes) of the train rows, and their standard deviation.

    That is (D) of vectors, sequences and regions, else one number for all positions and colours.
    """
    rows = np.sort(modality.rows_of(task.having(modality, "train")))
    total = squares = np.zeros(())
    for some in pieces(modality.data, rows):
        x = modality.data[some].astype(np.float64)
        total, squares = total + x.sum(0), squares + (x * x).sum(0)
    mean, square = total / len(rows), squares / len(rows)
    axes = _POOLED.get(modality.type)
    variance = np.mean(square, axis=axes) - np.mean(mean, axis=axes) ** 2
    return mean, np.sqrt(np.maximum(variance, 0))


def noise(deviation: Array) -> Change:
    """Return what adds Gaussian noise of this standard deviation to rows (n, *axes)."""
    generator = np.random.default_rng(0)

    def change(rows: Array) -> Array:
        return _as_stored(rows + deviation * generator.standard_normal(rows.shape), rows)

    return change


def replaced_by(mean: Array) -> Change:
    """Return what makes each of the rows (n, *axes) the row ``mean`` (*axes)."""
    return lambda rows: _as_stored(np.broadcast_to(mean, rows.shape), rows)


def words_left_out(share: float) -> Change:
    """Return what leaves each word of texts (n,), or token of (n, T), out with this probability.

    What follows moves up; rows of tokens are filled up with 0, also where 0 is a token like others.
    """
    generator = np.random.default_rng(0)

    def text(row: object) -> str:
        words = str(row).split()
        return " ".join(
            w for w, u in zip(words, generator.random(len(words)), strict=True) if u >= share
        )

    def change(rows: Array) -> Array:
        if rows.ndim == 1:
            return np.array([text(row) for row in rows], rows.dtype)
        kept = generator.random(rows.shape) >= share
        order = np.argsort(~kept, axis=1, kind="stable")
        return np.take_along_axis(np.where(kept, rows, 0), order, axis=1)

    return change


def _as_stored(values: Array, rows: Array) -> Array:
    """Return ``values`` in the type of ``rows``; whole numbers stay in its range."""
    if rows.dtype.kind in "iu":
        limits = np.iinfo(rows.dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(rows.dtype)
