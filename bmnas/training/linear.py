"""Linear models: logistic regression by L-BFGS, its weight decay tried from strong to weak.

Legend: n samples, R rows, D numbers of a row, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bmnas.tasks.task import Array
from bmnas.training.heads import TaskHead

#: 1 / C of scikit-learn's logistic regression, for rows of about length one; the strongest first.
DECAYS = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
_ITERATIONS = 30  # for each of them, from where the one before it ended


class LinearInput(NamedTuple):
    """Rows (R, D) of a modality, sparse or not, and which of them each sample has, (n,)."""

    rows: Tensor
    place: Tensor

    def of(self, samples: Array) -> LinearInput:
        """Return it for ``samples`` alone, with the rows that these use."""
        used, place = torch.unique(self.place[torch.from_numpy(samples)], return_inverse=True)
        return LinearInput(self.rows.index_select(0, used), place)


def linear_logits(weights: Sequence[Tensor], inputs: Sequence[LinearInput]) -> Tensor:
    """Return logits (n, K); the last of ``weights`` is the bias."""
    *matrices, bias = weights
    # A row that samples share is multiplied once.
    terms = [(own.rows @ w)[own.place] for own, w in zip(inputs, matrices, strict=True)]
    return torch.stack(terms).sum(0) + bias


def fits(
    train: Sequence[LinearInput],
    labels: Tensor,
    judged: Sequence[LinearInput],
    head: TaskHead,
    outputs: int,
) -> Iterator[tuple[float, list[Tensor], Tensor]]:
    """Yield each of ``DECAYS`` with the weights fitted to ``train``, and their logits of others."""
    weights = [torch.zeros(own.rows.shape[1], outputs) for own in train]
    weights.append(torch.zeros(outputs))
    for decay in DECAYS:
        weights = fitted_weights(weights, train, labels, head, decay)
        yield decay, weights, linear_logits(weights, judged)


def fitted_weights(
    start: Sequence[Tensor],
    inputs: Sequence[LinearInput],
    labels: Tensor,
    head: TaskHead,
    decay: float,
) -> list[Tensor]:
    """Return the matrices (D, K) and the bias (K,) with the least loss, from ``start`` on."""
    weights = [w.clone().requires_grad_() for w in start]
    optimizer = torch.optim.LBFGS(
        weights, max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        length = torch.stack([w.square().sum() for w in weights[:-1]]).sum()
        # The loss is a mean over samples, and with several labels over these too.
        loss = (
            head.loss(linear_logits(weights, inputs), labels)
            + decay / (2 * labels.numel()) * length
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return [w.detach() for w in weights]
