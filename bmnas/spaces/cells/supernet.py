"""The supernet: every feature, edge and operation at once, weighted by alpha, beta and gamma.

Legend: B batch, L length, C channels, F features, N Cells, M steps, K classes.

These are the equations (BM-NAS, Eq. 1, 2, 9, 10) over the modules of ``operations``, with torch's
own gradients. Three things make them fast: the sum over many edges is one contraction, layers that
read one tensor are one product, and the BatchNorms behind them are one. torch.compile fuses what
is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from bmnas.features.layers import LinearNorm, linear, normalise_together
from bmnas.features.reshape import Projection
from bmnas.spaces.cells.derive import ArchitectureWeights
from bmnas.spaces.cells.operations import OPERATIONS
from bmnas.spaces.cells.primitives import CellOutput, Head, SharedInput

_IDENTITY = 1  # an edge chooses between Zero and Identity, in this order
_INITIAL_SCALE = 1e-3

#: Weights of terms: a tensor, or plain numbers, where terms of weight 0 are not computed.
Weights = Tensor | Sequence[float]


class RelaxedStep(nn.Module):
    """One step as the mixture of the whole pool over one input t (Eq. 10)."""

    def __init__(self, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.names = tuple(OPERATIONS)
        self.operations = nn.ModuleDict(
            {
                name: operation.build(channels, length, dropout)
                for name, operation in OPERATIONS.items()
                if not operation.is_zero
            }
        )

    def forward(self, t: Tensor, gamma: Weights) -> Tensor:
        """Return the mixture (B, L, C) of the operations on ``t`` (B, L, C), weighted by gamma."""
        places = [n for n in counting(gamma) if self.names[n] in self.operations]
        if not places:
            return torch.zeros_like(t)
        chosen = [self.operations[self.names[n]] for n in places]
        sharing = [module for module in chosen if isinstance(module, SharedInput)]
        projected = iter(projections(t, [layer for one in sharing for layer in one.layers()]))
        results = [
            module.combine(*(next(projected) for _ in module.layers()))
            if isinstance(module, SharedInput)
            else module(t, t)
            for module in chosen
        ]
        return weighted_sum(_taken(gamma, places), results)


class RelaxedCell(nn.Module):
    """A Cell whose M steps read every earlier node, each edge weighted by beta (Eq. 9)."""

    def __init__(self, steps: int, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.steps = nn.ModuleList(RelaxedStep(channels, length, dropout) for _ in range(steps))
        self.output = CellOutput(steps, channels, length, dropout, merge=steps > 1)

    def forward(self, s: Tensor, beta: Sequence[Weights], gamma: Sequence[Weights]) -> Tensor:
        """Return the Cell's output (B, L, C) for its relaxed input ``s``, which is x and y.

        Row m of ``beta`` has the weights of x, y and the steps, of which it uses the first 2+m;
        ``gamma`` is (M, operations).
        """
        outputs: list[Tensor] = []
        for m, step in enumerate(self.steps):
            t = weighted_sum(inner_edges(beta[m], m), [s, *outputs])
            outputs.append(step(t, gamma[m]))
        z: Tensor = self.output(s, outputs)
        return z


class Supernet(nn.Module):
    """All fusion networks at once, from pooled features to logits.

    ``channels_raw`` are the F channel counts of the pooled features. ``alpha`` (N, F+N-1, 2),
    ``beta`` (N, M, M+1, 2) and ``gamma`` (N, M, operations) are the architecture parameters; an
    entry that stands for an edge from a later node is never read.
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
        self.projections = nn.ModuleList(Projection(c, channels, dropout) for c in channels_raw)
        self.cells = nn.ModuleList(
            RelaxedCell(steps, channels, length, dropout) for _ in range(cells)
        )
        self.head = Head(cells, channels, length, classes)
        self.alpha = _logits(cells, len(channels_raw) + cells - 1, 2)
        self.beta = _logits(cells, steps, steps + 1, 2)
        self.gamma = _logits(cells, steps, len(OPERATIONS))

    def forward(
        self, features: Sequence[Tensor], *, weights: ArchitectureWeights | None = None
    ) -> Tensor:
        """Return logits (B, K) from the pooled features, (B, L, C_raw) each.

        ``weights`` take the place of alpha, beta and gamma; what has weight 0 is not computed.
        """
        if len(features) != len(self.projections):
            raise ValueError(f"received {len(features)} features, expected {len(self.projections)}")
        return self.fuse(self.reshape(features, weights), weights)

    def reshape(
        self, features: Sequence[Tensor], weights: ArchitectureWeights | None = None
    ) -> list[Tensor]:
        """Return the features as they enter the Cells, (B, L, C) each.

        A feature that has no weight in ``weights`` stays as it is.
        """
        rows: Iterable[Weights] = self.alpha if weights is None else weights.alpha
        read = {number for row in rows for number in counting(row)}
        return [
            project(x) if number in read else x
            for number, (project, x) in enumerate(zip(self.projections, features, strict=True))
        ]

    def fuse(self, nodes: Sequence[Tensor], weights: ArchitectureWeights | None = None) -> Tensor:
        """Return the logits (B, K) from what ``reshape`` gives."""
        count = len(nodes)
        outputs: list[Tensor] = []
        if weights is None:
            alpha, beta, gamma = self.probabilities()
            # The edges from features to all Cells at once.
            mixed = weighted_sum(alpha[:, :count], nodes)
            for k, cell in enumerate(self.cells):
                s = mixed[k]
                if outputs:
                    s = s + weighted_sum(alpha[k, count : count + k], outputs)
                outputs.append(cell(s, beta[k], gamma[k]))
        else:
            for k, cell in enumerate(self.cells):
                s = weighted_sum(weights.alpha[k], [*nodes, *outputs])
                outputs.append(cell(s, weights.beta[k], weights.gamma[k]))
        logits: Tensor = self.head(outputs)
        return logits

    def use_batch_statistics(self) -> None:
        """Let all BatchNorms normalise by each batch's own statistics, in any mode, from now on.

        The running ones are those of the mixture, and say nothing of a single network.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.SyncBatchNorm):
                module.running_mean = module.running_var = module.num_batches_tracked = None
                module.track_running_stats = False

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


def counting(weights: Weights) -> list[int]:
    """Return the places of the terms that count: all but those whose weight is the number 0."""
    if isinstance(weights, Tensor):
        return list(range(len(weights)))
    return [n for n, weight in enumerate(weights) if weight]


def weighted_sum(weights: Weights, terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of ``terms``, each times its entry of ``weights``.

    A matrix of weights gives a sum for each of its rows, stacked.
    """
    if not isinstance(weights, Tensor):
        counted = [w * z for w, z in zip(weights, terms, strict=True) if w]
        return reduce(torch.add, counted)
    if len(terms) == 1 and weights.dim() == 1:
        only: Tensor = weights[0] * terms[0]
        return only
    # Autocast would round what is a sum of few terms.
    with torch.autocast(weights.device.type, enabled=False):
        stacked = torch.stack([term.to(weights.dtype) for term in terms])
        total: Tensor = torch.tensordot(weights, stacked, 1)
        return total


def inner_edges(beta: Weights, m: int) -> Weights:
    """Return the weights of s, which is both x and y, and of the steps before step ``m``."""
    if isinstance(beta, Tensor):
        return torch.cat(((beta[0] + beta[1]).view(1), beta[2 : 2 + m]))
    return [beta[0] + beta[1], *beta[2 : 2 + m]]


def projections(t: Tensor, layers: Sequence[LinearNorm]) -> list[Tensor]:
    """Return BN(x W + b) of each layer, x being ``t`` (B, L, C) or t side by side with itself."""
    if not layers:
        return []
    product, norms = shared_product(t, layers), [layer.norm for layer in layers]
    parts = normalise_together(product, norms).split([n.num_features for n in norms], dim=1)
    return [part.view(*t.shape[:2], -1) for part in parts]


def shared_product(t: Tensor, layers: Sequence[LinearNorm]) -> Tensor:
    """Return what the linear layers give, (R, sum of their widths), as one product."""
    # A layer that reads t twice needs one product with the sum of the parts of its weight.
    parts = [layer.linear.weight.unflatten(1, (-1, t.shape[-1])) for layer in layers]
    weight = torch.cat([part.sum(1) if part.shape[1] > 1 else part[:, 0] for part in parts])
    bias = torch.cat([layer.linear.bias for layer in layers])
    return linear(t.flatten(0, 1), weight, bias)


def _taken(weights: Weights, places: Sequence[int]) -> Weights:
    if isinstance(weights, Tensor):
        return torch.stack([weights[n] for n in places])
    return [weights[n] for n in places]


def _logits(*shape: int) -> nn.Parameter:
    return nn.Parameter(_INITIAL_SCALE * torch.randn(shape))
