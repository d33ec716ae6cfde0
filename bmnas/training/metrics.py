"""What is minimised and what is reported, by kind of task (spec section 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.samples import Samples, iterate_batches
from bmnas.machine.distribution.ranks import gathered, size, span
from bmnas.tasks.task import Kind

_BATCH = 256

#: What a network returns: logits (B, K); in training perhaps with more after them, in a tuple, that
#: only a loss of its own reads.
Output = Tensor | tuple[Tensor, ...]


def logits_of(output: Output) -> Tensor:
    """Return the logits (B, K) in what a network returned."""
    return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and score of a network over a set of samples, with its logits (n, K)."""

    loss: float
    score: float
    logits: Tensor


@dataclass(frozen=True)
class Objective:
    """Loss and metric of a kind of task.

    Cross-entropy and accuracy for ``multiclass``; binary cross-entropy with logits and weighted F1
    at ``threshold`` for ``multilabel``.
    """

    kind: Kind
    threshold: float = 0.5

    @property
    def metric(self) -> str:
        """The metric's name in files: ``accuracy`` or ``weighted_f1``."""
        return "accuracy" if self.kind == "multiclass" else "weighted_f1"

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Return the mean loss of logits (B, K): labels (B,) integers or (B, K) zeros and ones."""
        logits = logits_of(output)
        if self.kind == "multiclass":
            return F.cross_entropy(logits, labels)
        return F.binary_cross_entropy_with_logits(logits, labels)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss (S) of each of S networks' logits (S, B, K) for the same labels."""
        whole = labels.expand(len(logits), *labels.shape).flatten(0, 1)
        flat = logits.flatten(0, 1)
        if self.kind == "multiclass":
            each = F.cross_entropy(flat, whole, reduction="none")
        else:
            each = F.binary_cross_entropy_with_logits(flat, whole, reduction="none")
        return each.view(len(logits), -1).mean(1)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return accuracy or weighted F1 of logits (n, K) as a fraction."""
        if self.kind == "multiclass":
            return float((logits.argmax(1) == labels).double().mean())
        return weighted_f1(logits.sigmoid().numpy() > self.threshold, labels.numpy() > 0.5)


class HeadsObjective(Objective):
    """The losses of several heads, added up; the score is that of the sum of their logits."""

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Return the sum of the mean losses of the heads, which follow the summed logits."""
        if isinstance(output, Tensor):
            return super().loss(output, labels)
        _, *heads = output
        return torch.stack([Objective.loss(self, head, labels) for head in heads]).sum()


def weighted_f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the F1 score of every label, averaged by how often the label occurs.

    Both are boolean (n, K). A label that neither occurs nor is predicted counts 0, as in
    scikit-learn, whose function this calls.
    """
    from sklearn.metrics import f1_score

    # A single column would be taken for a choice between two classes: a label that never occurs,
    # of weight zero, keeps it a set of labels.
    actual, predicted = (np.pad(each, ((0, 0), (0, 1))) for each in (actual, predicted))
    return float(f1_score(actual, predicted, average="weighted", zero_division=0))


def best_threshold(logits: Tensor, labels: Tensor) -> float:
    """Return the threshold in 0.05, 0.10, …, 0.95 with the best weighted F1; the lowest of equals.

    To be called with validation data only.
    """
    probabilities, actual = logits.sigmoid().numpy(), labels.numpy() > 0.5
    grid = [round(0.05 * step, 2) for step in range(1, 20)]
    return max(grid, key=lambda threshold: weighted_f1(probabilities > threshold, actual))


def evaluate(
    network: nn.Module,
    forward: Callable[[list[Tensor]], Output],
    samples: Samples,
    objective: Objective,
    device: torch.device,
) -> Evaluation:
    """Return the loss and score of ``forward`` over all ``samples``, in evaluation mode.

    ``network`` is what ``forward`` runs; it is put in evaluation mode and left so. Several ranks
    take a stretch of the samples each, and every one of them returns the whole.
    """
    logits, labels = _predict(network, forward, samples, device)
    return _evaluation(logits, labels, objective)


def evaluate_several(
    network: nn.Module,
    forward: Callable[[list[Tensor]], Tensor],
    samples: Samples,
    objective: Objective,
    device: torch.device,
) -> list[Evaluation]:
    """Return ``evaluate`` of each of the networks whose logits ``forward`` gives as (S, B, K)."""
    logits, labels = _predict(network, lambda x: forward(x).transpose(0, 1), samples, device)
    return [_evaluation(own, labels, objective) for own in logits.unbind(1)]


def _evaluation(logits: Tensor, labels: Tensor, objective: Objective) -> Evaluation:
    loss = float(objective.loss(logits, labels))
    return Evaluation(loss, objective.score(logits, labels), logits)


@torch.no_grad()
def _predict(
    network: nn.Module,
    forward: Callable[[list[Tensor]], Output],
    samples: Samples,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return what ``forward`` gives for all ``samples``, and their labels."""
    network.eval()
    logits, labels = [], []
    split = len(samples) >= size()  # fewer are not worth it, and somebody would have none
    own = span(len(samples)) if split else range(len(samples))
    batches = torch.arange(own.start, own.stop).split(_BATCH)
    for inputs, target in iterate_batches(samples, batches, device):
        logits.append(logits_of(forward(inputs)).float())
        labels.append(target)
    # The device synchronises here, once for all samples.
    all_logits, all_labels = torch.cat(logits).cpu(), torch.cat(labels).cpu()
    if split:
        all_logits, all_labels = gathered(all_logits), gathered(all_labels)
    return all_logits, all_labels
