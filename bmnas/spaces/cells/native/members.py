"""The passes of several supernets at once: wide and batched products, kernels over all members.

Legend: S members, B batch, L length, R = B*L rows, C channels, F features, N Cells, M steps.

As in ``passes``, which says what a pass is. Parameters are those of a supernet with a
leading axis S; the weights of projections are (C_raw, S, C), side by side, so that a feature, which
all members share, is read by one product for all of them, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bmnas.spaces.cells.native.calls import (
    BLOCK,
    CHUNKS,
    Drop,
    NormStruct,
    ReshapeStruct,
    StepStruct,
    address,
    addresses,
    library,
)
from bmnas.spaces.cells.native.passes import Gradients
from bmnas.spaces.cells.primitives import CellOutput, Head

if TYPE_CHECKING:
    from bmnas.spaces.cells.supernet import RelaxedStep

_aten = torch.ops.aten

# Floats behind a row of all members: rows a power of two apart would share few lines of a cache.
_PADDING = 16


class MembersReshape:
    """Projection, BatchNorm, ReLU and dropout of all features, and the edges of all Cells."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        norm: nn.BatchNorm1d,
        dropout: float,
    ) -> None:
        self.weights, self.biases, self.norm, self.dropout = weights, biases, norm, dropout

    def forward(self, features: Sequence[Tensor], edges: Tensor) -> Tensor:
        """Return the inputs (N, S, R, C) of all Cells from ``features`` (B, L, C_raw).

        ``edges`` (S, N, F) are the weights of the edges.
        """
        self.features = [x.flatten(0, 1) for x in features]
        self.edges, self.drop = edges.contiguous(), Drop.of(self.dropout)
        count, rows, cells = len(features), len(self.features[0]), edges.shape[1]
        _, members, channels = self.weights[0].shape
        self.width = members * channels
        self.x = x = edges.new_empty((count, rows, self.width + _PADDING))
        self.mean, self.rstd = edges.new_empty((2, members * count * channels)).unbind()
        self.struct = ReshapeStruct(
            *(count, members, rows, channels, x.shape[2], cells, address(self.edges)),
            *(NormStruct.of(self.norm, self.mean, self.rstd), *self.drop, torch.get_num_threads()),
        )
        for f, weight in enumerate(self.weights):
            out, bias = x[f, :, : self.width], self.biases[f].flatten()
            torch.addmm(bias, self.features[f], weight.flatten(1), out=out)
            # At once, while the product is in the cache.
            library().reshape_statistics(byref(self.struct), f, 1, address(out))
        self.y, mixed = torch.empty_like(x), edges.new_empty((cells, members, rows, channels))
        library().reshape_forward(byref(self.struct), address(x), address(self.y), address(mixed))
        return mixed

    def backward(self, g: Tensor, gradients: Gradients | None) -> Tensor:
        """Return the gradient (S, N, F) of the edges for ``g`` (N, S, R, C)."""
        cells, members, _, channels = g.shape
        shape = members, len(self.x), -(-channels // BLOCK), cells
        d_edges = g.new_empty(shape, dtype=torch.float64)
        if gradients is None:
            inputs = address(g), address(self.x), address(self.y)
            library().reshape_backward(
                byref(self.struct), 0, len(self.x), *inputs, None, None, None, address(d_edges)
            )
        else:
            d_norm = g.new_empty((2, *self.norm.weight.shape))
            gradients[id(self.norm.weight)], gradients[id(self.norm.bias)] = d_norm.unbind()
            outputs = *(address(d) for d in d_norm), address(d_edges)
            dx = torch.empty_like(self.x[0])  # of one feature, so that it stays in the cache
            for f, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
                inputs = address(g), address(x), address(y)
                library().reshape_backward(byref(self.struct), f, 1, *inputs, address(dx), *outputs)
                product = torch.mm(self.features[f].t(), dx[:, : self.width])
                gradients[id(self.weights[f])] = product.view_as(self.weights[f])
        return d_edges.sum(2).transpose(1, 2).to(g.dtype)


class MembersStep:
    """The mixture of the whole pool over one input t."""

    def __init__(self, step: RelaxedStep) -> None:
        self.module = step

    def forward(self, t: Tensor, gamma: Tensor) -> Tensor:
        """Return the mixture (S, B, L, C) over ``t`` (S, B, L, C), weighted by ``gamma`` (S, 5)."""
        module, norm, layer = self.module, self.module.norm, self.module.attention_norm
        members, batch, length, channels = t.shape
        first, second = module.concat.weight.chunk(2, dim=2)
        self.weight = torch.cat((module.glu.weight, first + second), dim=1)  # as for one member
        bias = torch.cat((module.glu.bias, module.concat.bias), dim=1).unsqueeze(1)
        self.products = torch.baddbmm(bias, t.flatten(1, 2), self.weight.transpose(1, 2))
        self.mean, self.rstd = t.new_empty((2, members * 3 * channels)).unbind()
        self.attention = t.new_empty((members, batch, length, length))
        self.layer_mean, self.layer_rstd = t.new_empty((2, members * batch)).unbind()
        drop, attention_drop = Drop.of(module.dropout.p), Drop.of(module.attention_dropout.p)
        threads = torch.get_num_threads()
        scratch, out = t.new_empty((threads, length * channels)), torch.empty_like(t)
        self.t, self.gamma = t, gamma.contiguous()
        self.struct = StepStruct(
            *(members, batch, length, channels, address(self.gamma)),
            *(NormStruct.of(norm, self.mean, self.rstd), address(layer.weight)),
            *(address(layer.bias), layer.eps, drop.threshold, attention_drop.threshold),
            *(drop.factor, attention_drop.factor, drop.seed ^ attention_drop.seed, threads),
        )
        inputs = t, self.products, self.attention, self.layer_mean, self.layer_rstd, scratch
        library().mixture_forward(byref(self.struct), *(address(x) for x in (*inputs, out)))
        return out

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, Tensor]:
        """Return the gradients of t and gamma for ``g`` (S, B, L, C)."""
        module, t = self.module, self.t
        members, batch, length, channels = t.shape
        size, chunks = length * channels, min(CHUNKS, batch)
        dt, dp = torch.empty_like(t), torch.empty_like(self.products)
        scratch = t.new_empty((self.struct.threads, 2 * size + length * length))
        partial = t.new_empty((members, chunks, 2 * size + 6 * channels))
        d_gamma = t.new_empty((members, chunks, 5), dtype=torch.float64)
        inputs = g, t, self.products, self.attention, self.layer_mean, self.layer_rstd, scratch
        places = [address(x) for x in (*inputs, dt, dp, partial, d_gamma)]
        library().mixture_backward(byref(self.struct), chunks, *places)
        rows = t.flatten(1, 2)
        dt.view_as(rows).baddbmm_(dp, self.weight)
        if gradients is not None:
            d_layer, d_norm = partial[:, 0].split((2 * size, 6 * channels), dim=1)
            of_products = torch.bmm(dp.transpose(1, 2), rows)
            of_glu, of_joint = of_products.split((2 * channels, channels), dim=1)
            gradients[id(module.glu.weight)] = of_glu
            gradients[id(module.concat.weight)] = of_joint.repeat(1, 1, 2)
            _put(gradients, module.norm, d_norm)
            _put(gradients, module.attention_norm, d_layer)
        return dt, d_gamma.sum(1).to(t.dtype)


class MembersOutput:
    """The end of a Cell: merge its steps, add s, LayerNorm."""

    def __init__(self, output: CellOutput) -> None:
        if output.merge is None:
            raise ValueError("expected an output with a merge; MembersLayerNorm is the other one")
        self.module, self.merge = output, output.merge

    def forward(self, s: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Return z (S, B, L, C) from the Cell's input ``s`` and its steps' ``outputs``."""
        linear, layer = self.merge.linear, self.module.norm
        self.drop = Drop.of(self.module.dropout.p)
        members, batch, length, channels = s.shape
        self.steps = torch.cat(tuple(outputs), dim=-1).flatten(1, 2)
        bias = linear.bias.unsqueeze(1)
        self.joined = torch.baddbmm(bias, self.steps, linear.weight.transpose(1, 2))
        self.mean, self.rstd = s.new_empty((2, members * channels)).unbind()
        self.layer_mean, self.layer_rstd = s.new_empty((2, members * batch)).unbind()
        self.residual, z = torch.empty_like(s), torch.empty_like(s)
        library().output_forward(
            *(members, batch, length, channels, address(s), address(self.joined)),
            *(byref(NormStruct.of(self.merge.norm, self.mean, self.rstd)), address(layer.weight)),
            *(address(layer.bias), layer.eps, *self.drop, address(self.layer_mean)),
            *(address(self.layer_rstd), address(self.residual), address(z)),
            torch.get_num_threads(),
        )
        return z

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of s and of the steps for ``g`` (S, B, L, C)."""
        linear, layer = self.merge.linear, self.module.norm
        members, batch, length, channels = g.shape
        size, chunks = length * channels, min(CHUNKS, batch)
        ds, dj = torch.empty_like(g), torch.empty_like(self.joined)
        partial = g.new_empty((members, chunks, 2 * size + 2 * channels))
        library().output_backward(
            *(members, batch, length, channels, chunks, address(g), address(self.joined)),
            *(address(self.residual), byref(NormStruct.of(self.merge.norm, self.mean, self.rstd))),
            *(address(layer.weight), address(self.layer_mean), address(self.layer_rstd)),
            *(*self.drop, address(ds), address(dj), address(partial), torch.get_num_threads()),
        )
        if gradients is not None:
            d_layer, d_norm = partial[:, 0].split((2 * size, 2 * channels), dim=1)
            gradients[id(linear.weight)] = torch.bmm(dj.transpose(1, 2), self.steps)
            _put(gradients, self.merge.norm, d_norm)
            _put(gradients, layer, d_layer)
        return ds, [torch.bmm(dj, w).view_as(g) for w in linear.weight.split(channels, dim=2)]


class MembersLayerNorm:
    """A LayerNorm over all but the first two axes, with an affine part of each member's own."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x`` (S, B, *shape)."""
        norm, shape = self.norm, list(self.norm.normalized_shape)
        self.x = x
        each = [
            _aten.native_layer_norm(*own, norm.eps)
            for own in zip(x, [shape] * len(x), norm.weight, norm.bias, strict=True)
        ]
        self.statistics = [statistics for _, *statistics in each]
        return torch.stack([z for z, *_ in each])

    def backward(self, g: Tensor, gradients: Gradients | None) -> Tensor:
        """Return the gradient of x for ``g`` (S, B, *shape)."""
        norm, wanted = self.norm, gradients is not None
        shape = list(norm.normalized_shape)
        members = zip(g, self.x, self.statistics, norm.weight, norm.bias, strict=True)
        each = [
            _aten.native_layer_norm_backward(
                own_g, x, shape, *statistics, weight, bias, [True, wanted, wanted]
            )
            for own_g, x, statistics, weight, bias in members
        ]
        dx, weights, biases = zip(*each, strict=True)
        if gradients is not None:
            gradients[id(norm.weight)] = torch.stack(weights)
            gradients[id(norm.bias)] = torch.stack(biases)
        return torch.stack(dx)


class MembersClassifier:
    """The head: LayerNorm over all Cells, ReLU, linear."""

    def __init__(self, head: Head) -> None:
        self.norm, self.linear = MembersLayerNorm(head.norm), head.classifier

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return logits (S, B, K) from the Cells' ``outputs`` (S, B, L, C)."""
        weight, bias = self.linear.weight.transpose(1, 2), self.linear.bias.unsqueeze(1)
        self.h = self.norm.forward(torch.cat(tuple(outputs), dim=-1)).relu_()
        return torch.baddbmm(bias, self.h.flatten(2), weight)

    def backward(self, g: Tensor, gradients: Gradients | None) -> Tensor:
        """Return the gradient (S, B, L, N*C) of the outputs side by side for ``g`` (S, B, K)."""
        if gradients is not None:
            gradients[id(self.linear.weight)] = torch.bmm(g.transpose(1, 2), self.h.flatten(2))
            gradients[id(self.linear.bias)] = g.sum(1)
        dh = torch.bmm(g, self.linear.weight).view_as(self.h)
        return self.norm.backward(_aten.threshold_backward(dh, self.h, 0), gradients)


class MembersEdges:
    """A weighted sum of nodes."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.contiguous()

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """Return the sum (S, *shape) of J ``nodes`` (S, *shape); weights are (S, J)."""
        members, count = self.weights.shape
        self.nodes, result = nodes, torch.empty_like(nodes[0])
        library().edges_forward(
            *(members, result[0].numel(), count, addresses(nodes), address(self.weights)),
            *(address(result), torch.get_num_threads()),
        )
        return result

    def backward(self, g: Tensor, d_nodes: Sequence[Tensor]) -> Tensor:
        """Add to the nodes' gradients ``d_nodes`` for ``g``; return that of the weights (S, J)."""
        members, count = self.weights.shape
        d_weights = torch.empty_like(self.weights)
        library().edges_backward(
            *(members, g[0].numel(), count, addresses(self.nodes), address(self.weights)),
            *(address(g), addresses(d_nodes), address(d_weights), torch.get_num_threads()),
        )
        return d_weights


def _put(gradients: Gradients, norm: nn.BatchNorm1d | nn.LayerNorm, pair: Tensor) -> None:
    members, *shape = norm.weight.shape
    weight, bias = pair.view(members, 2, *shape).unbind(1)
    gradients[id(norm.weight)], gradients[id(norm.bias)] = weight, bias
