"""The supernet: every feature, edge and operation at once, weighted by alpha, beta and gamma.

Legend: B batch, L length, R = B*L rows, C channels, F features, N Cells, M steps, K classes.

The equations (BM-NAS, Eq. 1, 2, 9, 10) are computed in a form made for speed, equal to the plain
one: all features are normalised as one matrix and meet the edges of all Cells in one contraction;
the three products of a step are one C x 3C product, because in the supernet an operation gets the
same tensor as both inputs. The passes are written by hand, forward and backward: training on a CPU
runs as a whole in ``native``, everything else goes through ``fused``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout
from bmnas.machine.distribution.share import current
from bmnas.spaces.cells import fused, native
from bmnas.spaces.cells.fused import weighted_sum
from bmnas.spaces.cells.operations import OPERATIONS
from bmnas.spaces.cells.primitives import ATTENTION_DROPOUT, CellOutput, Head

_IDENTITY = 1  # an edge chooses between Zero and Identity, in this order
_INITIAL_SCALE = 1e-3


@dataclass(frozen=True)
class ArchitectureWeights:
    """The relaxed choices as probabilities, plain data for files, plots and derivation.

    ``alpha[k]`` holds the F+k Identity weights of Cell k's edges, features first, then Cells;
    ``beta[k][m]`` the 2+m Identity weights of a step's edges, x and y first, then steps;
    ``gamma[k][m]`` the weights of the operations in the order of ``OPERATIONS``.
    """

    alpha: list[list[float]]
    beta: list[list[list[float]]]
    gamma: list[list[list[float]]]


class _Projection(nn.Module):
    """A linear layer with bias, rows (R, C_raw) to (R, C), its ``weight`` being (C_raw, C)."""

    def __init__(self, channels_raw: int, channels: int) -> None:
        super().__init__()
        linear = nn.Linear(channels_raw, channels)
        # In this layout the weight's gradient is x^T g, which runs a fifth faster than g^T x.
        self.weight = nn.Parameter(linear.weight.detach().t().contiguous())
        self.bias = linear.bias


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
        return fused.relaxed_step(
            t,
            gamma,
            self.glu,
            self.concat,
            self.norm,
            self.attention_norm,
            self.dropout.p,
            self.attention_dropout.p,
        )


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
            x_and_y = (beta[m, 0] + beta[m, 1]).view(1)  # both are s
            weights = torch.cat((x_and_y, beta[m, 2 : 2 + m]))
            outputs.append(step(weighted_sum(weights, [s, *outputs]), gamma[m]))
        output = self.output
        z: Tensor
        if output.merge is None:
            z = output.norm(s + outputs[0])
        else:
            layers = output.merge.linear, output.merge.norm, output.norm
            z = fused.cell_output(s, outputs, *layers, output.dropout.p)
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
        self.projections = nn.ModuleList(_Projection(c, channels) for c in channels_raw)
        self.norm = nn.BatchNorm1d(features * channels)
        self.dropout = Dropout(dropout)
        self.cells = nn.ModuleList(
            RelaxedCell(steps, channels, length, dropout) for _ in range(cells)
        )
        self.head = Head(cells, channels, length, classes)
        self.alpha = _logits(cells, features + cells - 1, 2)
        self.beta = _logits(cells, steps, steps + 1, 2)
        self.gamma = _logits(cells, steps, len(OPERATIONS))
        self._weights: list[nn.Parameter] | None = None

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled features, (B, L, C_raw) each."""
        count = len(self.projections)
        if len(features) != count:
            raise ValueError(f"received {len(features)} features, expected {count}")
        alpha, beta, gamma = self.probabilities()
        device = features[0].device.type
        lowered = torch.is_autocast_enabled(device)
        if self.training and has_kernels(features[0], lowered=lowered):
            return native.supernet_logits(self, features, alpha, beta, gamma, lowered=lowered)
        weights, biases = self.projection_parameters()
        mixed = fused.reshape_and_mix(
            features, weights, biases, self.norm, self.dropout.p, alpha[:, :count]
        )
        shape = (*features[0].shape[:2], self.channels)
        outputs: list[Tensor] = []
        for k, (cell, x) in enumerate(zip(self.cells, mixed.unbind(), strict=True)):
            s = x.view(shape)
            if outputs:
                s = s + weighted_sum(alpha[k, count : count + k], outputs)
            outputs.append(cell(s, beta[k], gamma[k]))
        logits: Tensor = self.head(outputs)
        return logits

    def projection_parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the weights (C_raw, C) and the biases (C) of the projections."""
        layers = [cast(_Projection, layer) for layer in self.projections]
        return [layer.weight for layer in layers], [layer.bias for layer in layers]

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Return alpha, beta and gamma."""
        return [self.alpha, self.beta, self.gamma]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Return every parameter that is not an architecture parameter."""
        # Every step asks, and walking the modules takes longer than some of its kernels.
        if self._weights is None:
            chosen = {id(p) for p in self.architecture_parameters()}
            self._weights = [p for p in self.parameters() if id(p) not in chosen]
        return list(self._weights)

    def forget_weights(self) -> None:
        """Look for the weights again: some of the parameters are others now."""
        self._weights = None

    @torch.no_grad()
    def architecture_weights(self) -> ArchitectureWeights:
        """Return the current choices as plain probabilities."""
        alpha, beta, gamma = (w.double().cpu().tolist() for w in self.probabilities())
        first = len(self.projections)
        return ArchitectureWeights(
            alpha=[row[: first + k] for k, row in enumerate(alpha)],
            beta=[[row[: 2 + m] for m, row in enumerate(cell)] for cell in beta],
            gamma=gamma,
        )

    def probabilities(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the Identity weights of alpha and beta, and the weights of gamma."""
        alpha = self.alpha.softmax(-1)[..., _IDENTITY]
        beta = self.beta.softmax(-1)[..., _IDENTITY]
        return alpha, beta, self.gamma.softmax(-1)


def has_kernels(x: Tensor, *, lowered: bool = False) -> bool:
    """Tell whether training on features such as ``x`` runs in ``bmnas.spaces.cells.native``.

    Under autocast, for those that can, which are ``lowered``, if that is to bfloat16.
    """
    device = x.device.type
    mixed = torch.is_autocast_enabled(device)
    if torch.compiler.is_compiling() or (mixed and not lowered):
        return False
    if mixed and torch.get_autocast_dtype(device) != torch.bfloat16:
        return False
    # Of several ranks each has a share of the batch, and its norms need to hear of the others.
    suits = device == "cpu" and (lowered or x.dtype == torch.float32) and current() is None
    return suits and native.kernels() is not None


def _logits(*shape: int) -> nn.Parameter:
    return nn.Parameter(_INITIAL_SCALE * torch.randn(shape))
