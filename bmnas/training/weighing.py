"""A weighted sum of what several networks say, fitted on samples that none of them has learned.

Stacking (Wolpert, 1992) with one number a network: a product of experts whose weights are also
their temperatures, so the sum is calibrated where it was fitted.

Legend: M members, n samples, K outputs of a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bmnas.training.heads import TaskHead
from bmnas.training.settings import Weighing

_FAINT = 0.02  # of the weights' sum: a member below it changes no decision and is left out
_ITERATIONS = 200
_PARTS = 4


def fit_weighing(logits: Mapping[str, Tensor], labels: Tensor, head: TaskHead) -> Weighing:
    """Return the weights, none negative, with the least loss of ``head`` on ``labels``.

    ``logits`` are (n, K) by member. A member that hardly counts is left out, and the others are
    fitted again. The bias is for labels that are rare: it is zero where the loss does not read it.
    """
    members = dict(logits)
    while True:
        found, bias = _fitted(torch.stack(list(members.values())), labels, head)
        faint = [w < _FAINT * sum(found) for w in found]
        if not any(faint):
            return Weighing(dict(zip(members, found, strict=True)), bias)
        # The faintest alone: members that say the same share a weight until one of them is gone.
        members.pop(list(members)[found.index(min(found))])


def held_out_loss(logits: Mapping[str, Tensor], labels: Tensor, head: TaskHead) -> float:
    """Return the loss of the weighted sum on samples that its weights were not fitted to."""
    return float(head.loss(held_out_sum(logits, labels, head), labels))


def held_out_sum(logits: Mapping[str, Tensor], labels: Tensor, head: TaskHead) -> Tensor:
    """Return the weighted sum (n, K), each sample with weights that were not fitted to it.

    The samples are taken in ``_PARTS`` parts; each has weights of the others.
    """
    place = torch.arange(len(labels)) % _PARTS
    totals = torch.empty_like(next(iter(logits.values())))
    for part in range(_PARTS):
        inside, out = place != part, place == part
        found = fit_weighing({k: x[inside] for k, x in logits.items()}, labels[inside], head)
        totals[out] = found.of({k: x[out] for k, x in logits.items()})
    return totals


def _fitted(logits: Tensor, labels: Tensor, head: TaskHead) -> tuple[list[float], float]:
    """Return the weights of logits (M, n, K), and the bias."""
    terms = logits.detach().double()
    labels = labels.double() if labels.is_floating_point() else labels
    logs = torch.full((len(terms),), -math.log(len(terms)), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")
    least, seen = math.inf, (logs.detach().clone(), bias.detach().clone())

    def closure() -> Tensor:
        nonlocal least, seen
        optimizer.zero_grad()
        loss = head.loss(torch.tensordot(logs.exp(), terms, 1) + bias, labels)
        # A normal prior around the mean: where samples are few and all of them answered rightly,
        # weights without end would have the least loss. It also holds a bias that no loss reads.
        far = (logs.exp() - 1 / len(terms)).square().sum() + bias.square()
        loss = loss + far / (2 * head.counted(labels))
        loss.backward()
        if loss.item() < least:
            least, seen = loss.item(), (logs.detach().clone(), bias.detach().clone())
        return loss

    optimizer.step(closure)
    ends = logs.detach(), bias.detach()
    if not all(bool(x.isfinite().all()) for x in ends):
        # The line search of LBFGS ended so on regression labels that were met nearly exactly.
        ends = seen
    return ends[0].exp().tolist(), float(ends[1])
