"""The plain form of the supernet's equations: one module per edge and operation, (B, C, L).

The reference that ``Supernet`` must equal, and the baseline that its speed is measured
against. Written to be read beside the paper (BM-NAS, sections 3.1 to 3.3), not to be fast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bmnas.features.layers import LinearNorm
from bmnas.spaces.cells.supernet import Supernet


class Edge(nn.Module):
    """Eq. 1: a choice between Zero and Identity."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(1e-3 * torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.logits.softmax(0)
        return weights[0] * torch.zeros_like(x) + weights[1] * x


class Reshape(nn.Module):
    """Section 3.1, step 2."""

    def __init__(self, channels_raw: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_raw, channels, 1)
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(x)).relu())


class Attention(nn.Module):
    """Eq. 6."""

    def __init__(self, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm([channels, length])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query, key = x.transpose(1, 2), y.transpose(1, 2)
        weights = (query @ key.transpose(1, 2) / math.sqrt(x.shape[1])).softmax(-1)
        return self.norm(self.dropout((weights @ key).transpose(1, 2)))


class LinearGLU(nn.Module):
    """Eq. 7."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv_1, self.conv_2 = (
            nn.Conv1d(channels, channels, 1),
            nn.Conv1d(channels, channels, 1),
        )
        self.norm_1, self.norm_2 = nn.BatchNorm1d(channels), nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        value, gate = self.norm_1(self.conv_1(x)), self.norm_2(self.conv_2(y))
        return self.dropout(value * gate.sigmoid())


class ConcatFC(nn.Module):
    """Eq. 8."""

    def __init__(self, channels_in: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels, 1)
        self.norm = nn.BatchNorm1d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(torch.cat(inputs, 1))).relu())


class Step(nn.Module):
    """Eq. 10: the mixture over the pool."""

    def __init__(self, nodes: int, channels: int, length: int, dropout: float, attention: float):
        super().__init__()
        self.edges = nn.ModuleList(Edge() for _ in range(nodes))
        self.attention = Attention(channels, length, attention)
        self.glu = LinearGLU(channels, dropout)
        self.concat = ConcatFC(2 * channels, channels, dropout)
        self.gamma = nn.Parameter(1e-3 * torch.randn(5))

    def forward(self, nodes: list[Tensor]) -> Tensor:
        t = sum(edge(node) for edge, node in zip(self.edges, nodes, strict=True))
        results = [
            torch.zeros_like(t),
            t + t,
            self.attention(t, t),
            self.glu(t, t),
            self.concat(t, t),
        ]
        weights = self.gamma.softmax(0)
        return sum(weight * result for weight, result in zip(weights, results, strict=True))


class Cell(nn.Module):
    """Section 3.3."""

    def __init__(self, steps: int, channels: int, length: int, dropout: float, attention: float):
        super().__init__()
        self.steps = nn.ModuleList(
            Step(2 + m, channels, length, dropout, attention) for m in range(steps)
        )
        self.merge = ConcatFC(steps * channels, channels, dropout) if steps > 1 else None
        self.norm = nn.LayerNorm([channels, length])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        nodes = [x, y]
        for step in self.steps:
            nodes.append(step(nodes))
        outputs = nodes[2:]
        merged = outputs[0] if self.merge is None else self.merge(*outputs)
        return self.norm(merged + x)


class PlainSupernet(nn.Module):
    """Sections 3.2 and 3.3, with the head; features are (B, C_raw, L)."""

    def __init__(
        self,
        channels_raw: list[int],
        *,
        cells: int,
        steps: int,
        channels: int,
        length: int,
        classes: int,
        dropout: float,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.reshapes = nn.ModuleList(Reshape(c, channels, dropout) for c in channels_raw)
        self.edges = nn.ModuleList(
            nn.ModuleList(Edge() for _ in range(len(channels_raw) + k)) for k in range(cells)
        )
        self.cells = nn.ModuleList(
            Cell(steps, channels, length, dropout, attention_dropout) for _ in range(cells)
        )
        self.norm = nn.LayerNorm([cells * channels, length])
        self.classifier = nn.Linear(cells * channels * length, classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        nodes = [reshape(x) for reshape, x in zip(self.reshapes, features, strict=True)]
        for edges, cell in zip(self.edges, self.cells, strict=True):
            s = sum(edge(node) for edge, node in zip(edges, nodes, strict=True))
            nodes.append(cell(s, s))
        outputs = nodes[len(features) :]
        return self.classifier(self.norm(torch.cat(outputs, 1)).relu().flatten(1))


#: Pairs (plain parameter, parameter of the supernet in the plain layout).
Pairs = list[tuple[nn.Parameter, Tensor]]


def parameter_pairs(plain: PlainSupernet, net: Supernet, *, gradients: bool = False) -> Pairs:
    """Return every plain parameter beside the same numbers cut out of the supernet.

    With ``gradients`` the supernet's gradients are cut instead. Every entry of the supernet that
    is in use stands in exactly one pair.
    """

    def take(parameter: Tensor) -> Tensor:
        if not gradients:
            return parameter.detach()
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    pairs: Pairs = []

    def linear_norm(conv: nn.Conv1d, norm: nn.Module, layer: LinearNorm) -> None:
        pairs.append((conv.weight, take(layer.linear.weight).unsqueeze(-1)))
        pairs.append((conv.bias, take(layer.linear.bias)))
        pairs.append((norm.weight, take(layer.norm.weight)))
        pairs.append((norm.bias, take(layer.norm.bias)))

    def layer_norm(norm: nn.Module, layer: nn.LayerNorm) -> None:
        pairs.append((norm.weight, take(layer.weight).T))
        pairs.append((norm.bias, take(layer.bias).T))

    for reshape, projection in zip(plain.reshapes, net.projections, strict=True):
        linear_norm(reshape.conv, reshape.norm, projection.project)
    alpha, beta, gamma = take(net.alpha), take(net.beta), take(net.gamma)
    for k, (edges, cell, own) in enumerate(zip(plain.edges, plain.cells, net.cells, strict=True)):
        pairs.extend((edge.logits, alpha[k, i]) for i, edge in enumerate(edges))
        for m, (step, relaxed) in enumerate(zip(cell.steps, own.steps, strict=True)):
            pairs.extend((edge.logits, beta[k, m, j]) for j, edge in enumerate(step.edges))
            pairs.append((step.gamma, gamma[k, m]))
            operations = relaxed.operations
            linear_norm(step.glu.conv_1, step.glu.norm_1, operations["linear_glu"].value)
            linear_norm(step.glu.conv_2, step.glu.norm_2, operations["linear_glu"].gate)
            linear_norm(step.concat.conv, step.concat.norm, operations["concat_fc"].project)
            layer_norm(step.attention.norm, operations["attention"].norm)
        if cell.merge is not None:
            linear_norm(cell.merge.conv, cell.merge.norm, own.output.merge)
        layer_norm(cell.norm, own.output.norm)
    head = net.head
    layer_norm(plain.norm, head.norm)
    classes, length = head.classifier.out_features, head.norm.normalized_shape[0]
    flat = take(head.classifier.weight).view(classes, length, -1).transpose(1, 2)
    pairs.append((plain.classifier.weight, flat.reshape(classes, -1)))
    pairs.append((plain.classifier.bias, take(head.classifier.bias)))
    return pairs


@torch.no_grad()
def copy_parameters(plain: PlainSupernet, net: Supernet) -> None:
    """Give ``plain`` the weights of ``net``."""
    for parameter, value in parameter_pairs(plain, net):
        parameter.copy_(value)
