"""Numbers as labels: the Huber loss of standardised numbers, and R².

Legend: n samples, K numbers of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import Regression
from bmnas.training.task_head import ServedOutput, TaskHead

_EQUAL = 0.1  # standard deviations: predictions nearer than that are the same decision


class RegressionHead(TaskHead):
    """K numbers: Huber loss and R², the share of the variance that is explained.

    The loss is half the squared error up to one standard deviation and grows linearly from there:
    as good as the squared error where errors are normal, better where a few labels are far off.
    A network gives standardised numbers, ``scale`` says of which labels; what is served, and told
    as an error, is in the labels' own units.
    """

    kind = Regression()
    metric = "r2"
    decision = "none"
    activation = "scale"

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample, a mean over its numbers (Huber, 1964)."""
        mean, deviation = self._scale(labels)
        wanted = ((labels - mean) / deviation).to(logits.dtype)
        return F.huber_loss(logits, wanted, reduction="none").mean(-1)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return R², the mean over the numbers: 1 is exact, 0 as good as the mean, below is worse.

        A number that is the same in all labels has no variance to explain: 0.
        """
        return float(self._r2(logits, labels).mean())

    def _r2(self, logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.double()
        left = (self.probabilities(logits.double()) - labels).square().sum(0)
        whole = (labels - labels.mean(0)).square().sum(0)
        # The mean of equal numbers is rounded, so ``whole`` of them may not be zero.
        varies = labels.amax(0) > labels.amin(0)
        return torch.where(varies, 1 - left / whole.where(varies, 1.0), 0.0)

    def details(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Return MAE and RMSE in the labels' units, and Pearson's correlation, of each number.

        And its R² if there are many; their names end in that of the number. The correlation of a
        number that does not vary is 0.
        """
        predictions, labels = self.probabilities(logits.double()), labels.double()
        apart = predictions - labels
        found = {
            "mae": apart.abs().mean(0),
            "rmse": apart.square().mean(0).sqrt(),
            "pearson": _pearson(predictions, labels),
        }
        if labels.shape[1] == 1:
            return {name: float(own) for name, own in found.items()}
        found["r2"] = self._r2(logits, labels)
        return {
            f"{name}_{number}": own
            for name, each in found.items()
            for number, own in zip(self.names, each.tolist(), strict=True)
        }

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the predictions (n, K) in the labels' units."""
        mean, deviation = self._scale(logits)
        return logits * deviation + mean

    def decide(self, logits: Tensor) -> Tensor:
        """Return predictions (n, K) in steps of a tenth of the standard deviation.

        Numbers of two computations are never equal to the last digit.
        """
        return (logits / _EQUAL).round()

    def columns(self, logits: Tensor, labels: Tensor) -> dict[str, Sequence[object]]:
        """Return the labels and the predictions."""
        names = [f" {name}" for name in self.names] if labels.shape[1] > 1 else [""]
        parts = {"label": labels, "prediction": self.probabilities(logits.double())}
        return {
            f"{part}{name}": own
            for part, numbers in parts.items()
            for name, own in zip(names, numbers.T.tolist(), strict=True)
        }

    def served_outputs(self, classes: int, outputs: int) -> tuple[ServedOutput, ...]:
        """Return what is served of each sample."""
        return (
            ServedOutput("logits", outputs, "the prediction in standard deviations from the mean"),
            ServedOutput("prediction", outputs, "numbers in the unit of the labels"),
        )

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (K,), of the type of ``like`` and beside it."""
        if self.scale is None:
            raise UserError("a regression task: received no scale of its labels, expected one")
        return like.new_tensor(self.scale.mean), like.new_tensor(self.scale.deviation)


def _pearson(one: Tensor, two: Tensor) -> Tensor:
    """Return the correlation (K,) of the columns of (n, K) with each other."""
    varies = (one.amax(0) > one.amin(0)) & (two.amax(0) > two.amin(0))
    one, two = one - one.mean(0), two - two.mean(0)
    lengths = one.norm(dim=0) * two.norm(dim=0)
    return torch.where(varies, (one * two).sum(0) / lengths.where(varies, 1.0), 0.0)
