"""The supernet: every feature, edge and operation at once, weighted by alpha, beta and gamma.

Legend: B batch, L length, R = B*L rows, C channels, F features, N Cells, M steps, K classes.

The equations (BM-NAS, Eq. 1, 2, 9, 10) are computed in a form made for speed, equal to the plain
one: all features are normalised as one matrix and meet the edges of all Cells in one contraction;
the three products of a step are one C x 3C product, because in the supernet an operation gets the
same tensor as both inputs, so that the two halves of ``concat_fc`` fold into their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.genotype import PRIMITIVES
from bmnas.primitives import (
    ATTENTION_DROPOUT,
    CellOutput,
    Dropout,
    Head,
    batch_norm,
    scaled_attention,
    scaled_batch_norm,
)

_IDENTITY = 1  # an edge chooses between Zero and Identity, in this order
_INITIAL_SCALE = 1e-3


@dataclass(frozen=True)
class ArchitectureWeights:
    """The relaxed choices as probabilities, plain data for files, plots and derivation.

    ``alpha[k]`` holds the F+k Identity weights of Cell k's edges, features first, then Cells;
    ``beta[k][m]`` the 2+m Identity weights of a step's edges, x and y first, then steps;
    ``gamma[k][m]`` the weights of the operations in the order of ``PRIMITIVES``.
    """

    alpha: list[list[float]]
    beta: list[list[list[float]]]
    gamma: list[list[list[float]]]


class _ProjectConstant(torch.autograd.Function):
    """A linear layer of a tensor that needs no gradient, (B, L, C_raw) to (B, L, C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        rows = gradient.flatten(0, 1)
        # x^T g runs a third faster than the g^T x of torch's own linear layer.
        return None, torch.mm(x.flatten(0, 1).T, rows).T, rows.sum(0)


class RelaxedStep(nn.Module):
    """One step as the mixture of the whole pool over one input t (Eq. 10)."""

    def __init__(self, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.glu = nn.Linear(channels, 2 * channels)  # W1 and W2 of linear_glu
        self.concat = nn.Linear(2 * channels, channels)  # W of concat_fc
        self.norm = nn.BatchNorm1d(3 * channels)  # of the value, the gate and concat_fc
        self.dropout = Dropout(dropout)
        self.attention_dropout = Dropout(ATTENTION_DROPOUT)
        self.attention_norm = nn.LayerNorm([length, channels])

    def forward(self, t: Tensor, gamma: Tensor) -> Tensor:
        """Return the mixture (B, L, C) of the operations on ``t`` (B, L, C), weighted by gamma."""
        channels = t.shape[-1]
        folded = self.concat.weight[:, :channels] + self.concat.weight[:, channels:]
        weight = torch.cat((self.glu.weight, folded))
        bias = torch.cat((self.glu.bias, self.concat.bias))
        _, of_sum, of_attention, of_glu, of_concat = gamma.unbind()
        # The weight of an operation is positive and moves into the affine part of its norm.
        scale = torch.stack((of_glu, torch.ones_like(of_glu), of_concat)).repeat_interleave(
            channels
        )
        products = scaled_batch_norm(F.linear(t, weight, bias), self.norm, scale)
        value, gate, joint = torch.split(products, channels, dim=-1)
        norm = self.attention_norm
        attended = F.layer_norm(
            self.attention_dropout(scaled_attention(t, t)),
            norm.normalized_shape,
            norm.weight * of_attention,
            norm.bias * of_attention,
            norm.eps,
        )
        gated = self.dropout(value * gate.sigmoid())
        mixture: Tensor = (2.0 * of_sum) * t + attended + gated + self.dropout(joint.relu())
        return mixture


class RelaxedCell(nn.Module):
    """A Cell whose M steps read every earlier node, each edge weighted by beta (Eq. 9)."""

    def __init__(self, steps: int, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.steps = nn.ModuleList(RelaxedStep(channels, length, dropout) for _ in range(steps))
        self.output = CellOutput(steps, channels, length, dropout, merge=steps > 1)

    def forward(self, s: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
        """Return the Cell's output (B, L, C) for its relaxed input ``s``.

        ``beta`` is (M, M+1), of which row m uses the first 2+m; ``gamma`` is (M, operations).
        """
        outputs: list[Tensor] = []
        for m, step in enumerate(self.steps):
            t = (beta[m, 0] + beta[m, 1]) * s  # x and y are both s
            if outputs:
                t = t + torch.tensordot(beta[m, 2 : 2 + m], torch.stack(outputs), dims=1)
            outputs.append(step(t, gamma[m]))
        z: Tensor = self.output(s, outputs)
        return z


class Supernet(nn.Module):
    """All fusion networks at once, from pooled features to logits.

    ``channels_raw`` are the F channel counts of the pooled features. ``alpha`` (N, F+N-1, 2),
    ``beta`` (N, M, M+1, 2) and ``gamma`` (N, M, 5) are the architecture parameters; an entry that
    stands for an edge from a later node is never read.
    """

    def __init__(
        self,
        channels_raw: Sequence[int],
        *,
        cells: int,
        steps: int,
        channels: int,
        length: int,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        features = len(channels_raw)
        self.channels = channels
        self.projections = nn.ModuleList(nn.Linear(c, channels) for c in channels_raw)
        self.norm = nn.BatchNorm1d(features * channels)
        self.dropout = Dropout(dropout)
        self.cells = nn.ModuleList(
            RelaxedCell(steps, channels, length, dropout) for _ in range(cells)
        )
        self.head = Head(cells, channels, length, classes)
        self.alpha = _logits(cells, features + cells - 1, 2)
        self.beta = _logits(cells, steps, steps + 1, 2)
        self.gamma = _logits(cells, steps, len(PRIMITIVES))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled features, (B, L, C_raw) each."""
        alpha, beta, gamma = self._weights()
        count = len(self.projections)
        mixed = torch.einsum("nf,blfc->nblc", alpha[:, :count], self._reshape(features))
        outputs: list[Tensor] = []
        for k, cell in enumerate(self.cells):
            s = mixed[k]
            if outputs:
                s = s + torch.tensordot(alpha[k, count : count + k], torch.stack(outputs), dims=1)
            outputs.append(cell(s, beta[k], gamma[k]))
        logits: Tensor = self.head(outputs)
        return logits

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Return alpha, beta and gamma."""
        return [self.alpha, self.beta, self.gamma]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Return every parameter that is not an architecture parameter."""
        chosen = {id(p) for p in self.architecture_parameters()}
        return [p for p in self.parameters() if id(p) not in chosen]

    @torch.no_grad()
    def architecture_weights(self) -> ArchitectureWeights:
        """Return the current choices as plain probabilities."""
        alpha, beta, gamma = (w.double().cpu().tolist() for w in self._weights())
        first = len(self.projections)
        return ArchitectureWeights(
            alpha=[row[: first + k] for k, row in enumerate(alpha)],
            beta=[[row[: 2 + m] for m, row in enumerate(cell)] for cell in beta],
            gamma=gamma,
        )

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        alpha = self.alpha.softmax(-1)[..., _IDENTITY]
        beta = self.beta.softmax(-1)[..., _IDENTITY]
        return alpha, beta, self.gamma.softmax(-1)

    def _reshape(self, features: Sequence[Tensor]) -> Tensor:
        """Return all reshaped features as (B, L, F, C)."""
        projected = torch.cat(
            [
                _ProjectConstant.apply(x, p.weight, p.bias)
                for x, p in zip(features, self.projections, strict=True)
            ],
            dim=-1,
        )
        h: Tensor = self.dropout(batch_norm(projected, self.norm).relu())
        return h.view(*h.shape[:2], -1, self.channels)


def _logits(*shape: int) -> nn.Parameter:
    return nn.Parameter(_INITIAL_SCALE * torch.randn(shape))
