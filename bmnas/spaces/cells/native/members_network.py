"""A training step's way through several supernets at once, forward and backward.

Legend: S members, B batch, L length, C channels, F features, N Cells, M steps, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from bmnas.spaces.cells.native.members import (
    MembersClassifier,
    MembersEdges,
    MembersLayerNorm,
    MembersOutput,
    MembersReshape,
    MembersStep,
)
from bmnas.spaces.cells.native.network import logits_by
from bmnas.spaces.cells.native.passes import Gradients

if TYPE_CHECKING:
    from bmnas.spaces.cells.supernet import RelaxedCell, RelaxedStep, Supernet


def members_logits(
    stacked: Supernet, features: Sequence[Tensor], alpha: Tensor, beta: Tensor, gamma: Tensor
) -> Tensor:
    """Return logits (S, B, K) of all members in training for ``features`` (B, L, C_raw).

    ``stacked`` holds the members' parameters as ``members`` says; ``alpha``
    (S, N, F+N-1), ``beta`` (S, N, M, M+1) and ``gamma`` (S, N, M, 5) are probabilities.
    """
    way = _Way(stacked, alpha, beta, gamma)
    return logits_by(way, features, stacked.weight_parameters(), alpha, beta, gamma)


class _Way:
    def __init__(self, stacked: Supernet, alpha: Tensor, beta: Tensor, gamma: Tensor) -> None:
        weights, biases = stacked.projection_parameters()
        self.first, self.alpha = len(weights), alpha
        self.reshape = MembersReshape(weights, biases, stacked.norm, stacked.dropout.p)
        self.cells = [
            _CellWay(cast("RelaxedCell", cell), *own)
            for cell, *own in zip(stacked.cells, beta.unbind(1), gamma.unbind(1), strict=True)
        ]
        self.classifier = MembersClassifier(stacked.head)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        mixed = self.reshape.forward(features, self.alpha[..., : self.first])
        self.outputs: list[Tensor] = []
        self.edges: list[MembersEdges] = []
        for k, (cell, x) in enumerate(zip(self.cells, mixed, strict=True)):
            s = x.view(len(x), *features[0].shape[:2], -1)
            self.edges.append(MembersEdges(self.alpha[:, k, self.first : self.first + k]))
            if k:
                s.add_(self.edges[k].forward(self.outputs))
            self.outputs.append(cell.forward(s))
        return self.classifier.forward(self.outputs)

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
        joined = self.classifier.backward(g, gradients)
        pending = [d.contiguous() for d in joined.chunk(len(self.cells), dim=-1)]
        d_mixed = joined.new_empty((len(self.cells), *pending[0].shape))
        d_alpha = torch.zeros_like(self.alpha)
        d_cells: list[tuple[Tensor, Tensor]] = []
        for k in reversed(range(len(self.cells))):
            ds, d_beta, d_gamma = self.cells[k].backward(pending[k], gradients)
            d_cells.insert(0, (d_beta, d_gamma))
            if k:
                d_edges = self.edges[k].backward(ds, pending[:k])
                d_alpha[:, k, self.first : self.first + k] = d_edges
            d_mixed[k] = ds
        d_alpha[..., : self.first] = self.reshape.backward(d_mixed.flatten(2, 3), gradients)
        d_beta, d_gamma = (torch.stack(d, dim=1) for d in zip(*d_cells, strict=True))
        return d_alpha, d_beta, d_gamma


class _CellWay:
    def __init__(self, cell: RelaxedCell, beta: Tensor, gamma: Tensor) -> None:
        self.steps = [MembersStep(cast("RelaxedStep", step)) for step in cell.steps]
        output = cell.output
        self.output = (
            MembersLayerNorm(output.norm) if output.merge is None else MembersOutput(output)
        )
        self.beta, self.gamma = beta, gamma

    def forward(self, s: Tensor) -> Tensor:
        self.s = s
        self.results: list[Tensor] = []
        self.edges: list[MembersEdges] = []
        for m, step in enumerate(self.steps):
            x_and_y = self.beta[:, m, :2].sum(1, keepdim=True)  # both are s
            self.edges.append(MembersEdges(torch.cat((x_and_y, self.beta[:, m, 2 : 2 + m]), 1)))
            t = self.edges[m].forward([s, *self.results])
            self.results.append(step.forward(t, self.gamma[:, m]))
        if isinstance(self.output, MembersLayerNorm):
            return self.output.forward(s + self.results[0])
        return self.output.forward(s, self.results)

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(self.output, MembersLayerNorm):
            ds = self.output.backward(g, gradients)
            pending = [ds.clone()]
        else:
            ds, pending = self.output.backward(g, gradients)
        d_beta, d_gamma = torch.zeros_like(self.beta), torch.empty_like(self.gamma)
        for m in reversed(range(len(self.steps))):
            dt, d_gamma[:, m] = self.steps[m].backward(pending[m], gradients)
            d_edges = self.edges[m].backward(dt, [ds, *pending[:m]])
            d_beta[:, m, :2] = d_edges[:, :1]
            d_beta[:, m, 2 : 2 + m] = d_edges[:, 1:]
        return ds, d_beta, d_gamma
