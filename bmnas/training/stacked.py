"""Losses and scores of several networks that are trained as one, on the same batches.

Legend: B batch, n samples, N networks, K classes.
"""

from __future__ import annotations

from torch import Tensor

from bmnas.training.metrics import Evaluation, Objective, Output


class StackedObjective(Objective):
    """The sum of the losses of N networks, so that each gets the gradients of its own alone.

    The score is that of the mean of their logits, which nothing depends on.
    """

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Return the sum over N of the mean losses; ``output`` is (B, N, K), or ends with it."""
        logits = output if isinstance(output, Tensor) else output[-1]
        count = logits.shape[1]
        repeated = labels.repeat_interleave(count, dim=0)
        return count * super().loss(logits.flatten(0, 1), repeated)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Return the score of the mean over N of logits (n, N, K), or of that mean (n, K)."""
        return super().score(logits.mean(1) if logits.dim() == 3 else logits, labels)


def evaluated(logits: Tensor, labels: Tensor, objective: Objective) -> Evaluation:
    """Return loss and score of the logits (n, K) of one of the networks."""
    loss = float(objective.loss(logits, labels))
    return Evaluation(loss, objective.score(logits, labels), logits)
