"""Linear models of raw inputs, of each modality and of all: what a network has to beat.

Pixels and the numbers of sequences and vectors are standardised, and long ones reduced to principal
components; of text it is the TF-IDF of words and pairs of words, of a waveform the log-mel
spectrogram. Weight decay is chosen on validation.

Legend: n samples, R rows, D numbers of a row, K outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas.backbones.waveform import LogMel
from bmnas.features.samples import label_tensor
from bmnas.machine.errors import UserError
from bmnas.machine.files import write_json
from bmnas.machine.runtime import seed_stage
from bmnas.pipeline.context import RunContext
from bmnas.report.metrics import RunMetrics, TrainedMetrics, UnimodalMetrics
from bmnas.tasks import check_task, check_test
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.rows import pieces
from bmnas.tasks.task import Array, Modality, Part, Task
from bmnas.training.heads import TaskHead, head_of
from bmnas.training.linear import LinearInput, fits, fitted_weights, linear_logits

_MOST_NUMBERS = 40_000_000  # of all rows: of larger ones, evenly spaced numbers
_MOST_TERMS = 4096
_COMPONENTS = 256  # principal components of longer rows: with many classes weights are many
_BINS = 8  # of time, in a spectrogram
_FARTHEST = 5.0  # standard deviations


def fit_linear(context: RunContext) -> None:
    """Write the scores of linear models into the run folder of ``context``.

    Fitted on train with the weight decay, and the threshold, that suit validation best, then on
    train and validation; tested once. Raises UserError when the task cannot be used.
    """
    task, folder = context.task, context.folder
    check_task(task)
    check_test(task)
    if not task_kind(task.kind).ALONE:
        raise UserError(f"task {task.name}: kind {task.kind} is beyond a linear model")
    seed_stage(context.seed, "linear")  # for the principal components
    write_json(folder.config, {"strategy": "none", "fusion": "linear", **context.record()})
    inputs = {modality.name: _input(task, modality) for modality in task.modalities}
    alone = {name: _scores(task, context.head, [own]) for name, own in inputs.items()}
    started = time.process_time()  # the row of all modalities has the cost of its own model
    _, score = _scores(task, context.head, list(inputs.values()))
    spent = time.process_time() - started
    found = RunMetrics(
        metric=context.head.metric,
        unimodal={name: UnimodalMetrics(*both) for name, both in alone.items()},
        test=TrainedMetrics(score),
        processor_seconds={"train": spent},
    )
    # Last: with a test score the run is finished.
    found.save(folder.metrics)


def _scores(task: Task, head: TaskHead, inputs: Sequence[LinearInput]) -> tuple[float, float]:
    """Return the scores on validation and test of a model of ``inputs`` together."""

    def data(*parts: Part) -> tuple[list[LinearInput], Tensor]:
        samples = task.samples(*parts)
        return [own.of(samples) for own in inputs], label_tensor(task, samples)

    (train, labels), (validation, wanted) = data("train"), data("validation")
    tried = list(fits(train, labels, validation, head, task.outputs))
    # max() takes the first of equals.
    decay, weights, logits = max(tried, key=lambda one: head.score(one[2], wanted))
    best = head.score(logits, wanted)
    threshold = head.best_threshold(logits, wanted) if head.threshold is None else head.threshold
    both, labels = data("train", "validation")
    (test, wanted), final = data("test"), fitted_weights(weights, both, labels, head, decay)
    return best, head_of(task, threshold).score(linear_logits(final, test), wanted)


def _input(task: Task, modality: Modality) -> LinearInput:
    used, place = np.unique(modality.rows_of(np.arange(len(task.part))), return_inverse=True)
    train = np.isin(used, modality.rows_of(task.samples("train")))
    if modality.type in ("text", "tokens"):
        read = _terms(modality.data[used], train)
    else:
        read = _reduced(_standardised(_numbers(modality, used, train), train), train)
    return LinearInput(read, torch.from_numpy(place))


def _terms(rows: Array, train: Array) -> Tensor:
    """Return sparse TF-IDF (R, D) of texts (R,) or tokens (R, T), as frequent in ``train`` (R,)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [row if isinstance(row, str) else " ".join(map(str, row)) for row in rows.tolist()]
    table = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=_MOST_TERMS, token_pattern=r"\w+"
    )
    table.fit([text for text, seen in zip(texts, train, strict=True) if seen])
    found = table.transform(texts).tocoo()
    place = torch.from_numpy(np.stack([found.row, found.col]).astype(np.int64))
    values = torch.from_numpy(found.data).float()
    return torch.sparse_coo_tensor(place, values, found.shape, check_invariants=True)


def _numbers(modality: Modality, used: Array, train: Array) -> Tensor:
    """Return what each of the rows ``used`` (R,) says, (R, D)."""
    data = modality.data

    def read(some: Array) -> Array:
        rows = np.array(data[some])
        lacking = some[:0] if modality.absent is None else modality.absent[some]
        rows[lacking] = 0
        return rows

    if modality.type == "waveform":
        rows = read(used)
        assert modality.sample_rate is not None
        log_mel = LogMel(rows.shape[1], modality.sample_rate)
        log_mel.fit(rows[train])
        with torch.no_grad():
            each = [log_mel(torch.from_numpy(rows[n : n + 256])) for n in range(0, len(rows), 256)]
        return F.adaptive_avg_pool1d(torch.cat(each).transpose(1, 2), _BINS).flatten(1)
    every = math.ceil(len(used) * math.prod(data.shape[1:]) / _MOST_NUMBERS)
    kept = [
        np.array(read(some).reshape(len(some), -1)[:, ::every], np.float32)
        for some in pieces(data, used)
    ]
    return torch.from_numpy(np.concatenate(kept))


def _standardised(numbers: Tensor, train: Array) -> Tensor:
    """Return numbers (R, D) as deviations from the mean of ``train``; a row's length is about 1."""
    seen = numbers[torch.from_numpy(train)]
    deviation, mean = torch.std_mean(seen, 0, correction=0)
    scaled = (numbers - mean) / torch.where(deviation > 0, deviation, 1.0)
    return scaled.clamp(-_FARTHEST, _FARTHEST) / math.sqrt(numbers.shape[1])


def _reduced(numbers: Tensor, train: Array) -> Tensor:
    """Return the principal components of long rows (R, D) by those of ``train``; others as are."""
    if numbers.shape[1] <= _COMPONENTS:
        return numbers
    seen = numbers[torch.from_numpy(train)]
    *_, axes = torch.pca_lowrank(seen, min(_COMPONENTS, len(seen)), center=False)
    return numbers @ axes
