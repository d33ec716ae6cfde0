"""What a network is trained for, measured by and served with: one head for each kind of task.

Legend: n samples, N networks, K outputs of a network (``TaskKind.outputs``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import (
    TASK_KINDS,
    UNSEEN_LABEL,
    Answers,
    LabelScale,
    Multiclass,
    Multilabel,
    task_kind,
)
from bmnas.tasks.task import Task
from bmnas.training.grounding import GroundingHead
from bmnas.training.matching import MatchingHead
from bmnas.training.regression import RegressionHead
from bmnas.training.settings import Confusion
from bmnas.training.task_head import ServedOutput as ServedOutput
from bmnas.training.task_head import TaskHead as TaskHead
from bmnas.training.task_head import calibration_error as calibration_error


class MulticlassHead(TaskHead):
    """One class of K: cross-entropy and accuracy."""

    kind = Multiclass()
    metric = "accuracy"
    decision = "argmax"
    activation = "softmax"

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each sample; labels are classes (n,).

        It is zero where the class is one that train does not have, and times ``class_weights``.
        """
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return F.cross_entropy(logits, labels, weights, reduction="none", ignore_index=UNSEEN_LABEL)

    def counted(self, labels: Tensor) -> Tensor:
        """Return how many samples have a class of train, 1 where none has."""
        return (labels != UNSEEN_LABEL).sum().clamp(min=1)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return the accuracy."""
        return float((logits.argmax(1) == labels).double().mean())

    def macro_f1(self, logits: Tensor, labels: Tensor) -> float:
        """Return the mean F1 score of the classes that occur or are chosen."""
        return macro_f1_of_classes(logits.argmax(1).numpy(), labels.numpy())

    def details(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Return balanced accuracy, the mean recall of classes that occur, and AUROC.

        AUROC is the mean over classes, each against all others.
        """
        chosen, own = logits.argmax(1), labels[labels != UNSEEN_LABEL]
        recalls = [(chosen[labels == k] == k).double().mean() for k in own.unique()]
        found = auroc(self.probabilities(logits), labels[:, None] == torch.arange(logits.shape[1]))
        if recalls:
            found["balanced_accuracy"] = float(torch.stack(recalls).mean())
        return found

    def columns(self, logits: Tensor, labels: Tensor) -> dict[str, Sequence[object]]:
        """Return class names and probabilities; a class that train does not have has no name."""
        named = [self.names[k] if k != UNSEEN_LABEL else "" for k in labels.tolist()]
        chosen = [self.names[k] for k in logits.argmax(1).tolist()]
        return {"label": named, "prediction": chosen, **self._likely(logits)}

    def confusion(self, logits: Tensor, labels: Tensor) -> Confusion | None:
        """Return how many samples of each class are taken for which."""
        count = len(self.names)
        known = labels != UNSEEN_LABEL
        place = labels[known] * count + logits[known].argmax(1)
        counts = torch.bincount(place, minlength=count * count).view(count, count)
        return Confusion(self.names, self.names, tuple(map(tuple, counts.tolist())))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax."""
        return logits.softmax(-1)

    def calibration_error(self, logits: Tensor, labels: Tensor) -> float:
        """Return the error of the probability of the class that is chosen."""
        probability, chosen = self.probabilities(logits).max(-1)
        return calibration_error(probability, chosen == labels)

    def decide(self, logits: Tensor) -> Tensor:
        """Return the class (n, 1) of each sample."""
        return logits.argmax(-1, keepdim=True)


class MultilabelHead(TaskHead):
    """Any of K labels: binary cross-entropy with logits, and weighted F1 at ``threshold``."""

    kind = Multilabel()
    metric = "weighted_f1"
    decision = "threshold"
    activation = "sigmoid"

    def __init__(self, threshold: float | None = None) -> None:
        """Give a label above the probability ``threshold``.

        Without one nothing can be decided, and a score is that at the threshold that suits the
        logits best: it compares networks before a threshold is chosen.
        """
        self.threshold = threshold

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over labels of each sample; ``labels`` are zeros and ones (n, K).

        Having a label counts ``class_weights`` times.
        """
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        losses = F.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=weights, reduction="none"
        )
        return losses.mean(-1)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return the weighted F1 at ``threshold``."""
        if self.threshold is None:
            return MultilabelHead(self.best_threshold(logits, labels)).score(logits, labels)
        return weighted_f1(self.decide(logits).numpy(), labels.numpy() > 0.5)

    def macro_f1(self, logits: Tensor, labels: Tensor) -> float:
        """Return the macro F1 at ``threshold``."""
        return macro_f1(self.decide(logits).numpy(), labels.numpy() > 0.5)

    def details(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Return balanced accuracy and AUROC, means over the labels that some samples have.

        Balanced accuracy is the mean of the shares of those with and of those without a label that
        are answered rightly.
        """
        having = labels > 0.5
        both = having.any(0) & ~having.all(0)
        right = (self.decide(logits) == having).double()[:, both]
        of = having[:, both].double()
        found = auroc(self.probabilities(logits), having)
        if both.any():
            shares = [(right * part).sum(0) / part.sum(0) for part in (of, 1 - of)]
            found["balanced_accuracy"] = float(torch.stack(shares).mean())
        return found

    def columns(self, logits: Tensor, labels: Tensor) -> dict[str, Sequence[object]]:
        """Return lists of names, separated by ``|``, and probabilities."""
        given = {"label": labels > 0.5, "prediction": self.decide(logits)}
        found: dict[str, Sequence[object]] = {
            part: ["|".join(compress(self.names, row)) for row in own.tolist()]
            for part, own in given.items()
        }
        return found | self._likely(logits)

    def confusion(self, logits: Tensor, labels: Tensor) -> Confusion | None:
        """Return how often each label is given rightly, missed, and given wrongly."""
        given, having = self.decide(logits), labels > 0.5
        counts = torch.stack([given & having, ~given & having, given & ~having]).sum(1).T
        columns = "given rightly", "missed", "given wrongly"
        return Confusion(self.names, columns, tuple(map(tuple, counts.tolist())))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid."""
        return logits.sigmoid()

    def calibration_error(self, logits: Tensor, labels: Tensor) -> float:
        """Return the error over the probabilities of all labels alike."""
        return calibration_error(self.probabilities(logits).flatten(), labels.flatten() > 0.5)

    def decide(self, logits: Tensor) -> Tensor:
        """Return which labels (n, K) each sample gets; raises UserError without a threshold."""
        if self.threshold is None:
            raise UserError("a multilabel task: received no threshold, expected one from 0 to 1")
        return logits.sigmoid() > self.threshold

    def best_threshold(self, logits: Tensor, labels: Tensor) -> float:
        """Return one of 0.05, 0.10, …, 0.95 by the scores there; the lowest of equals.

        The best is that with the highest mean of its own and its neighbours' scores: with few
        samples a single one is high by luck.
        """
        grid = [round(0.05 * step, 2) for step in range(1, 20)]
        scores = [MultilabelHead(threshold).score(logits, labels) for threshold in grid]
        means = [fmean(scores[max(0, place - 1) : place + 2]) for place in range(len(scores))]
        return grid[means.index(max(means))]


class AnswersHead(TaskHead):
    """One of K answers to a question that A people answered: cross-entropy and VQA accuracy.

    Each answer is worth .3 for each of ten people who gave it, at most 1: the official accuracy of
    VQA (Antol et al., 2015). Of fewer people each counts more, and one is worth 1 if it is alone.
    """

    kind = Answers()
    metric = "vqa_accuracy"
    decision = "argmax"
    activation = "sigmoid"

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return binary cross-entropy, summed over the answers; ``labels`` are (n, A)."""
        counts = logits.new_zeros(len(logits), logits.shape[1] + 1)
        given = torch.where(labels < 0, logits.shape[1], labels)
        counts = counts.scatter_add(1, given, counts.new_ones(labels.shape))[:, :-1]
        worth = _worth(counts, labels.shape[1])
        return F.binary_cross_entropy_with_logits(logits, worth, reduction="none").sum(-1)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return the mean worth of the answers with the highest logits."""
        return float(self._worth_of_best(logits, labels).mean())

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the sigmoid: how much each answer is worth, as far as the network knows."""
        return logits.sigmoid()

    def calibration_error(self, logits: Tensor, labels: Tensor) -> float:
        """Return the error of the worth of the answer that is chosen."""
        chosen = self.probabilities(logits).amax(-1)
        return calibration_error(chosen, self._worth_of_best(logits, labels))

    def columns(self, logits: Tensor, labels: Tensor) -> dict[str, Sequence[object]]:
        """Return what people answered, separated by ``|``, the answer chosen and its probability.

        An answer that several people gave stands there as often; those of no class have no name.
        """
        given = ["|".join(self.names[k] for k in row if k >= 0) for row in labels.tolist()]
        chosen = [self.names[k] for k in self.decide(logits).squeeze(1).tolist()]
        likely = self.probabilities(logits).amax(-1).tolist()
        return {"label": given, "prediction": chosen, "probability": likely}

    def decide(self, logits: Tensor) -> Tensor:
        """Return the answer (n, 1) to each question."""
        return logits.argmax(-1, keepdim=True)

    def _worth_of_best(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _worth((labels == self.decide(logits)).sum(1).double(), labels.shape[1])


def _worth(counts: Tensor, people: int) -> Tensor:
    """Return what answers are worth that so many of ``people`` gave."""
    return (counts / min(people, 10 / 3)).clamp(max=1)


#: The head of every kind of task by the kind's name, see ``register_head``.
TASK_HEADS: dict[str, type[TaskHead]] = {}


def register_head(head: type[TaskHead]) -> type[TaskHead]:
    """Make ``head`` and its kind known under the kind's name; may be used as a decorator.

    A kind that exists already is replaced.
    """
    TASK_KINDS[head.kind.name] = head.kind
    TASK_HEADS[head.kind.name] = head
    return head


register_head(MulticlassHead)
register_head(MultilabelHead)
register_head(RegressionHead)
register_head(AnswersHead)
register_head(GroundingHead)
register_head(MatchingHead)


def head_for(
    kind: str,
    threshold: float | None = None,
    *,
    names: tuple[str, ...] = (),
    scale: LabelScale | None = None,
    class_weights: tuple[float, ...] | None = None,
) -> TaskHead:
    """Return the head of the kind of task called ``kind``; raises UserError when there is none."""
    head = TASK_HEADS[task_kind(kind).name](threshold)
    head.names, head.scale, head.class_weights = names, scale, class_weights
    return head


def head_of(task: Task, threshold: float | None = None) -> TaskHead:
    """Return the head of ``task``, with what its train labels say."""
    return head_for(
        task.kind,
        threshold,
        names=task.class_names,
        scale=task.scale,
        class_weights=task.loss_weights,
    )


def weighted_f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the F1 score of every label, averaged by how often the label occurs.

    Both are boolean (n, K). A label that neither occurs nor is predicted counts 0, as in
    scikit-learn, whose function takes milliseconds: thresholds are chosen by many of these scores.
    """
    often = actual.sum(0)
    return float(np.average(_f1(predicted, actual), weights=often)) if often.any() else 0.0


def macro_f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean F1 score of the labels, of which frequent ones count no more than others.

    Both are boolean (n, K), see ``weighted_f1``.
    """
    return float(_f1(predicted, actual).mean())


def macro_f1_of_classes(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean F1 score of the classes in either (n,); scikit-learn's, but for unseen ones.

    A sample of a class that train does not have counts as a wrong choice.
    """
    from sklearn.metrics import f1_score

    known = np.setdiff1d(np.union1d(predicted, actual), [UNSEEN_LABEL])
    return float(f1_score(actual, predicted, labels=known, average="macro", zero_division=0))


def auroc(probabilities: Tensor, happened: Tensor) -> dict[str, float]:
    """Return ``auroc``: the mean area under the ROC curve of columns (n, K), each by itself.

    Columns in which nothing or everything ``happened`` have none; empty where that is all of them.
    """
    from sklearn.metrics import roc_auc_score

    both = happened.any(0) & ~happened.all(0)
    areas = [
        roc_auc_score(own.numpy(), likely.numpy())
        for own, likely in zip(happened.T[both], probabilities.T[both], strict=True)
    ]
    return {"auroc": fmean(map(float, areas))} if areas else {}


def _f1(predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    hits = (predicted & actual).sum(0)
    found: np.ndarray = 2 * hits / np.maximum(predicted.sum(0) + actual.sum(0), 1)
    return found
