"""What a kind of task asks of a network: loss, score, decision, and what is served.

Legend: n samples, N networks, K outputs of a network (``TaskKind.outputs``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bmnas.tasks.kinds import LabelScale, TaskKind
from bmnas.training.settings import Confusion


@dataclass(frozen=True)
class ServedOutput:
    """An output of the served model: a float32 tensor (n, columns), with a sentence for people."""

    name: str
    columns: int
    meaning: str


class TaskHead(ABC):
    """Loss, score and decision of a kind of task (spec section 7).

    ``kind`` is the data side of it, ``metric`` the score's name in files. ``threshold`` is the
    probability from which a label is given; None for a kind that has none. ``decision`` says how a
    client of the served model decides: ``argmax`` or ``threshold`` of its probabilities, or
    ``none`` where the numbers are the answer.

    ``names`` are those of the classes or numbers. ``scale`` is that of labels that are numbers,
    ``class_weights`` what each class counts in the loss; ``head_for`` sets them.

    A kind of your own is a subclass, given to ``register_head``.
    """

    kind: ClassVar[TaskKind]
    metric: ClassVar[str]
    #: What ``score`` is of batches of training, if not that.
    train_metric: ClassVar[str | None] = None
    decision: ClassVar[str]
    #: Of how many terms for each sample MMnas sums its loss over a batch; 0: it takes the mean.
    summed: ClassVar[int] = 1
    #: How probabilities come from logits, in a word or two.
    activation: ClassVar[str]
    #: Whether a network is calibrated by ``sharpness``, and not by the weights of a sum of logits.
    sharpens: ClassVar[bool] = False
    names: tuple[str, ...] = ()
    scale: LabelScale | None = None
    class_weights: tuple[float, ...] | None = None

    def __init__(self, threshold: float | None = None) -> None:
        """Take the ``threshold`` of the configuration; kinds that have none leave it."""
        self.threshold: float | None = None

    @abstractmethod
    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss (n,) of each sample from logits (n, K)."""

    @abstractmethod
    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return the score of logits (n, K) on the CPU: at most 1, the higher the better."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return what a client reads, by default one probability for each class, of (n, K)."""

    @abstractmethod
    def decide(self, logits: Tensor) -> Tensor:
        """Return what is decided for each sample, (n, any number), from logits (n, K)."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits (n, K)."""
        return self.sample_losses(logits, labels).sum() / self.counted(labels)

    def counted(self, labels: Tensor) -> Tensor | int:
        """Return how many samples a mean loss is over: all, unless a kind leaves some out."""
        return len(labels)

    def network_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss (N,) of each of N networks from logits (n, N, K)."""
        count = logits.shape[1]
        repeated = labels.repeat_interleave(count, dim=0)
        losses = self.sample_losses(logits.flatten(0, 1), repeated).view(-1, count)
        return losses.sum(0) / self.counted(labels)

    def summed_loss(self, several: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the sum of the losses of ``several`` logits (n, K), as of a network with heads."""
        return torch.stack([self.loss(logits, labels) for logits in several]).sum()

    @property
    def lacks_threshold(self) -> bool:
        """Whether what is decided hangs on a threshold that is still to be chosen."""
        return self.decision == "threshold" and self.threshold is None

    def best_threshold(self, logits: Tensor, labels: Tensor) -> float | None:
        """Return the threshold that suits logits (n, K) of validation data best; None without."""
        return None

    def calibration_error(self, logits: Tensor, labels: Tensor) -> float | None:
        """Return how far probabilities are from frequencies, see ``calibration_error``.

        None for a kind whose outputs are no probabilities.
        """
        return None

    def sharpness(self, logits: Tensor, labels: Tensor) -> float:
        """Return by what scores have to be multiplied for probabilities that suit ``labels``."""
        return 1.0

    def macro_f1(self, logits: Tensor, labels: Tensor) -> float | None:
        """Return the F1 score of logits (n, K) with all labels alike; None for other kinds."""
        return None

    def details(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Return what else is worth telling of logits (n, K) on the CPU, by name."""
        return {}

    def columns(self, logits: Tensor, labels: Tensor) -> dict[str, Sequence[object]]:
        """Return what a table of predictions says of each sample, n values by column.

        Nothing for a kind whose answers do not fit a table.
        """
        return {}

    def _likely(self, logits: Tensor) -> dict[str, Sequence[object]]:
        """Return a column of probabilities for each class."""
        each = self.probabilities(logits).T.tolist()
        return {f"probability {name}": own for name, own in zip(self.names, each, strict=True)}

    def confusion(self, logits: Tensor, labels: Tensor) -> Confusion | None:
        """Return how classes are taken for each other; None for a kind without."""
        return None

    def alike(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return logits (n, K) in parts, (n, any number) each, whose numbers are of one scale."""
        return (logits,)

    def served_outputs(self, classes: int, outputs: int) -> tuple[ServedOutput, ...]:
        """Return the outputs of the served model, ``logits`` (n, ``outputs``) the first."""
        return (
            ServedOutput("logits", outputs, f"one per class, before the {self.activation}"),
            ServedOutput(
                "probabilities", classes, f"{self.activation} of the logits, one per class"
            ),
        )

    def served(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of ``served_outputs`` from logits (n, K)."""
        return logits, self.probabilities(logits)


def calibration_error(probabilities: Tensor, happened: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of probabilities (n,) of what ``happened`` (n,).

    The mean over ``bins`` equal intervals of how far the mean probability is from the frequency,
    weighted by how many fall there (Guo et al., 2017, Eq. 3).
    """
    place = (probabilities * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, place, happened.double() - probabilities.double())
    return float(gap.abs().sum() / len(probabilities))
