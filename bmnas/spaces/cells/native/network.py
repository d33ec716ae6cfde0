"""A training step's way through the whole supernet, forward and backward, as one function.

Legend: B batch, L length, C channels, F features, N Cells, M steps, K classes.

Automatic differentiation sees one node: recording every small operation would cost about as much
time as computing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bmnas.spaces.cells.native.passes import Classifier, Gradients, LayerNorm, Output, Reshape, Step
from bmnas.spaces.cells.native.products import FULL, LOW, Products

if TYPE_CHECKING:
    from bmnas.spaces.cells.supernet import RelaxedCell, RelaxedStep, Supernet


def supernet_logits(
    supernet: Supernet,
    features: Sequence[Tensor],
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
    *,
    lowered: bool = False,
) -> Tensor:
    """Return logits (B, K) of ``supernet`` in training for ``features`` (B, L, C_raw).

    ``alpha`` (N, F+N-1), ``beta`` (N, M, M+1) and ``gamma`` (N, M, 5) are probabilities. With
    ``lowered`` matrices are multiplied in bfloat16, all but the classifier's.
    """
    way = _Way(supernet, alpha, beta, gamma, LOW if lowered else FULL)
    return logits_by(way, features, supernet.weight_parameters(), alpha, beta, gamma)


class Way(Protocol):
    """One batch's way through, forward and then backward."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits."""
        ...

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of alpha, beta and gamma; put those of parameters where wanted."""
        ...


def logits_by(
    way: Way,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    alpha: Tensor,
    beta: Tensor,
    gamma: Tensor,
) -> Tensor:
    """Return what ``way`` makes of ``features``, as one function of weights and probabilities."""
    result = _Logits.apply(way, features, weights, alpha, beta, gamma, *weights)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        way: Way,
        features: Sequence[Tensor],
        weights: Sequence[Tensor],
        alpha: Tensor,
        beta: Tensor,
        gamma: Tensor,
        *_: Tensor,
    ) -> Tensor:
        ctx.way, ctx.weights = way, weights
        # The passes round by themselves what products read.
        with torch.autocast("cpu", enabled=False):
            return way.forward(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients: Gradients | None = {} if any(ctx.needs_input_grad[6:]) else None
        of_architecture = ctx.way.backward(g.contiguous(), gradients)
        ctx.way = None  # what it kept for this is most of a step's memory
        if gradients is None:
            return None, None, None, *of_architecture, *([None] * len(ctx.weights))
        # A bias in front of a BatchNorm is not among them.
        of_weights = (
            gradients[id(w)] if id(w) in gradients else torch.zeros_like(w) for w in ctx.weights
        )
        return None, None, None, *of_architecture, *of_weights


class _Way:
    def __init__(
        self, supernet: Supernet, alpha: Tensor, beta: Tensor, gamma: Tensor, products: Products
    ) -> None:
        weights, biases = supernet.projection_parameters()
        self.first = len(weights)
        self.alpha, self.edges = alpha, alpha.tolist()
        self.reshape = Reshape(weights, biases, supernet.norm, supernet.dropout.p, products)
        self.cells = [
            _CellWay(cast("RelaxedCell", cell), edges, pool, products)
            for cell, edges, pool in zip(supernet.cells, beta, gamma, strict=True)
        ]
        self.classifier = Classifier(supernet.head)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        mixed = self.reshape.forward(features, self.alpha[:, : self.first])
        self.outputs: list[Tensor] = []
        for k, (cell, x) in enumerate(zip(self.cells, mixed, strict=True)):
            s = x.view(*features[0].shape[:2], -1)
            for output, weight in zip(self.outputs, self.edges[k][self.first :], strict=False):
                s.add_(output, alpha=weight)
            self.outputs.append(cell.forward(s))
        return self.classifier.forward(self.outputs)

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
        joined = self.classifier.backward(g, gradients)
        pending = [d.contiguous() for d in joined.chunk(len(self.cells), dim=-1)]
        d_mixed = torch.empty((len(self.cells), *pending[0].shape))
        d_alpha = torch.zeros_like(self.alpha)
        d_cells: list[tuple[Tensor, Tensor]] = []
        for k in reversed(range(len(self.cells))):
            ds, d_beta, d_gamma = self.cells[k].backward(pending[k], gradients)
            d_cells.insert(0, (d_beta, d_gamma))
            for j in range(k):
                d_alpha[k, self.first + j] = _dot(ds, self.outputs[j])
                pending[j].add_(ds, alpha=self.edges[k][self.first + j])
            d_mixed[k] = ds
        d_alpha[:, : self.first] = self.reshape.backward(d_mixed.flatten(1, 2), gradients)
        d_beta, d_gamma = (torch.stack(d) for d in zip(*d_cells, strict=True))
        return d_alpha, d_beta, d_gamma


class _CellWay:
    def __init__(self, cell: RelaxedCell, beta: Tensor, gamma: Tensor, products: Products) -> None:
        self.steps = [Step(cast("RelaxedStep", step), products) for step in cell.steps]
        merge = cell.output.merge
        output = cell.output
        self.output = LayerNorm(output.norm) if merge is None else Output(output, products)
        self.beta, self.edges, self.gamma = beta, beta.tolist(), gamma

    def forward(self, s: Tensor) -> Tensor:
        self.s = s
        self.results: list[Tensor] = []
        for step, edges, gamma in zip(self.steps, self.edges, self.gamma, strict=True):
            t = s * (edges[0] + edges[1])  # x and y are both s
            for result, weight in zip(self.results, edges[2:], strict=False):
                t.add_(result, alpha=weight)
            self.results.append(step.forward(t, gamma))
        if isinstance(self.output, LayerNorm):
            return self.output.forward(s + self.results[0])
        return self.output.forward(s, self.results)

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.output, LayerNorm):
            ds = self.output.backward(g, gradients)
            pending = [ds.clone()]
        else:
            ds, pending = self.output.backward(g, gradients)
        d_beta, d_gamma = torch.zeros_like(self.beta), torch.empty_like(self.gamma)
        for m in reversed(range(len(self.steps))):
            dt, d_gamma[m] = self.steps[m].backward(pending[m], gradients)
            edges = self.edges[m]
            d_beta[m, :2] = _dot(dt, self.s)
            ds.add_(dt, alpha=edges[0] + edges[1])
            for j in range(m):
                d_beta[m, 2 + j] = _dot(dt, self.results[j])
                pending[j].add_(dt, alpha=edges[2 + j])
        return ds, d_beta, d_gamma


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())
