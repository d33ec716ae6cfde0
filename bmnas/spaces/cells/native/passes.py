"""The passes of a supernet on top of the kernels: forward, and backward by hand.

Legend: B batch, L length, R = B*L rows, C channels, F features, N Cells, M steps.

A pass is made for one batch: ``forward`` keeps what ``backward`` wants, and ``backward`` returns
the gradients of its inputs and puts those of its parameters into ``gradients``, where these are
wanted. Nothing here is seen by automatic differentiation. The gradient of a bias in front of a
BatchNorm is left out: in training the BatchNorm takes the bias away again, and what rounding leaves
of it is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.spaces.cells.native.calls import (
    BLOCK,
    CHUNKS,
    Drop,
    NormStruct,
    ReshapeStruct,
    StepStruct,
    address,
    library,
)
from bmnas.spaces.cells.native.products import FULL, Products
from bmnas.spaces.cells.primitives import CellOutput, Head

if TYPE_CHECKING:
    from bmnas.spaces.cells.supernet import RelaxedStep

#: Of parameters, by identity: a tensor cannot be found in a dictionary by its value.
Gradients = dict[int, Tensor]

_aten = torch.ops.aten


class Reshape:
    """Projection, BatchNorm, ReLU and dropout of all features, and the edges of all Cells."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        norm: nn.BatchNorm1d,
        dropout: float,
        products: Products = FULL,
    ) -> None:
        self.weights, self.biases, self.norm, self.dropout = weights, biases, norm, dropout
        self.products = products

    def forward(self, features: Sequence[Tensor], edges: Tensor) -> Tensor:
        """Return the inputs (N, R, C) of all Cells from ``features`` (B, L, C_raw).

        ``edges`` (N, F) are the weights of the edges.
        """
        rounded = self.products.rounded
        self.features = [rounded(x.flatten(0, 1)) for x in features]
        self.edges, self.drop = edges.contiguous(), Drop.of(self.dropout)
        count, rows, channels = len(features), len(self.features[0]), self.weights[0].shape[1]
        self.x = x = edges.new_empty((count, rows, channels))
        for out, *layer in zip(x, self.biases, self.features, self.weights, strict=True):
            if self.products is FULL:
                torch.addmm(*layer, out=out)
            else:
                out.copy_(torch.addmm(*(rounded(x) for x in layer)))
        self.mean, self.rstd = edges.new_empty(count * channels), edges.new_empty(count * channels)
        self.y, mixed = torch.empty_like(x), edges.new_empty((len(edges), rows, channels))
        self.struct = ReshapeStruct(
            *(count, 1, rows, channels, channels, len(edges), address(self.edges)),
            *(NormStruct.of(self.norm, self.mean, self.rstd), *self.drop, torch.get_num_threads()),
        )
        library().reshape_statistics(byref(self.struct), 0, count, address(x))
        library().reshape_forward(byref(self.struct), address(x), address(self.y), address(mixed))
        return mixed

    def backward(self, g: Tensor, gradients: Gradients | None) -> Tensor:
        """Return the gradient (N, F) of the edges for ``g`` (N, R, C)."""
        count, _, channels = self.x.shape
        d_edges = g.new_empty((count, -(-channels // BLOCK), len(g)), dtype=torch.float64)
        inputs = address(g), address(self.x), address(self.y)
        if gradients is None:
            library().reshape_backward(
                byref(self.struct), 0, count, *inputs, None, None, None, address(d_edges)
            )
        else:
            dx, d_norm = torch.empty_like(self.x), g.new_empty((2, count * channels))
            outputs = address(dx), *(address(d) for d in d_norm), address(d_edges)
            library().reshape_backward(byref(self.struct), 0, count, *inputs, *outputs)
            gradients[id(self.norm.weight)], gradients[id(self.norm.bias)] = d_norm.unbind()
            for weight, feature, d in zip(self.weights, self.features, dx, strict=True):
                gradients[id(weight)] = self.products.mm(feature.t(), d)
        return d_edges.sum(1).t().to(g.dtype)


class Step:
    """The mixture of the whole pool over one input t."""

    def __init__(self, step: RelaxedStep, products: Products = FULL) -> None:
        self.module, self.multiply = step, products

    def forward(self, t: Tensor, gamma: Tensor) -> Tensor:
        """Return the mixture (B, L, C) over ``t`` (B, L, C), weighted by ``gamma`` (5)."""
        module, norm, layer = self.module, self.module.norm, self.module.attention_norm
        batch, length, channels = t.shape
        first, second = module.concat.weight.chunk(2, dim=1)
        # concat_fc gets t twice
        weight = torch.cat((module.glu.weight, first + second))
        bias = torch.cat((module.glu.bias, module.concat.bias))
        self.weight, self.rows = (self.multiply.rounded(x) for x in (weight, t.flatten(0, 1)))
        self.products = self.multiply.linear(self.rows, self.weight, bias)
        self.mean, self.rstd = t.new_empty(3 * channels), t.new_empty(3 * channels)
        self.attention = t.new_empty((batch, length, length))
        self.layer_mean, self.layer_rstd = t.new_empty(batch), t.new_empty(batch)
        drop, attention_drop = Drop.of(module.dropout.p), Drop.of(module.attention_dropout.p)
        threads = torch.get_num_threads()
        scratch, out = t.new_empty((threads, length * channels)), torch.empty_like(t)
        self.t, self.gamma = t, gamma.contiguous()
        self.struct = StepStruct(
            *(1, batch, length, channels, address(self.gamma)),
            *(NormStruct.of(norm, self.mean, self.rstd), address(layer.weight)),
            *(address(layer.bias), layer.eps, drop.threshold, attention_drop.threshold),
            *(drop.factor, attention_drop.factor, drop.seed ^ attention_drop.seed, threads),
        )
        inputs = t, self.products, self.attention, self.layer_mean, self.layer_rstd, scratch
        library().mixture_forward(byref(self.struct), *(address(x) for x in (*inputs, out)))
        return out

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, Tensor]:
        """Return the gradients of t and gamma for ``g`` (B, L, C)."""
        module, t = self.module, self.t
        batch, length, channels = t.shape
        size, chunks = length * channels, min(CHUNKS, batch)
        dt, dp = torch.empty_like(t), torch.empty_like(self.products)
        scratch = t.new_empty((self.struct.threads, 2 * size + length * length))
        partial = t.new_empty((chunks, 2 * size + 6 * channels))
        d_gamma = t.new_empty((chunks, 5), dtype=torch.float64)
        inputs = g, t, self.products, self.attention, self.layer_mean, self.layer_rstd, scratch
        addresses = [address(x) for x in (*inputs, dt, dp, partial, d_gamma)]
        library().mixture_backward(byref(self.struct), chunks, *addresses)
        low = self.multiply.rounded(dp)
        if self.multiply is FULL:
            dt.view_as(self.rows).addmm_(low, self.weight)
        else:
            dt.view_as(self.rows).add_(torch.mm(low, self.weight))
        if gradients is not None:
            d_layer, d_norm = partial[0].split((2 * size, 6 * channels))
            both = self.multiply.mm(low.t(), self.rows)
            of_glu, of_joint = both.split((2 * channels, channels))
            gradients[id(module.glu.weight)] = of_glu
            gradients[id(module.concat.weight)] = of_joint.repeat(1, 2)
            _put(gradients, module.norm, d_norm)
            _put(gradients, module.attention_norm, d_layer)
        return dt, d_gamma.sum(0).to(t.dtype)


class Output:
    """The end of a Cell: merge its steps, add s, LayerNorm."""

    def __init__(self, output: CellOutput, products: Products = FULL) -> None:
        if output.merge is None:
            raise ValueError("expected an output with a merge; LayerNorm is the other one")
        self.module, self.merge, self.products = output, output.merge, products

    def forward(self, s: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Return z (B, L, C) from the Cell's input ``s`` and its steps' ``outputs``, all alike."""
        linear, layer = self.merge.linear, self.module.norm
        self.drop = Drop.of(self.module.dropout.p)
        batch, length, channels = s.shape
        self.steps = self.products.rounded(torch.cat(tuple(outputs), dim=-1).flatten(0, 1))
        self.joined = self.products.linear(self.steps, linear.weight, linear.bias)
        self.mean, self.rstd = s.new_empty(channels), s.new_empty(channels)
        self.layer_mean, self.layer_rstd = s.new_empty(batch), s.new_empty(batch)
        self.residual, z = torch.empty_like(s), torch.empty_like(s)
        library().output_forward(
            *(1, batch, length, channels, address(s), address(self.joined)),
            *(byref(NormStruct.of(self.merge.norm, self.mean, self.rstd)), address(layer.weight)),
            *(address(layer.bias), layer.eps, *self.drop, address(self.layer_mean)),
            *(address(self.layer_rstd), address(self.residual), address(z)),
            torch.get_num_threads(),
        )
        return z

    def backward(self, g: Tensor, gradients: Gradients | None) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of s and of the steps for ``g`` (B, L, C)."""
        linear, layer = self.merge.linear, self.module.norm
        batch, length, channels = g.shape
        size, chunks = length * channels, min(CHUNKS, batch)
        ds, dj = torch.empty_like(g), torch.empty_like(self.joined)
        partial = g.new_empty((chunks, 2 * size + 2 * channels))
        library().output_backward(
            *(1, batch, length, channels, chunks, address(g), address(self.joined)),
            *(address(self.residual), byref(NormStruct.of(self.merge.norm, self.mean, self.rstd))),
            *(address(layer.weight), address(self.layer_mean), address(self.layer_rstd)),
            *(*self.drop, address(ds), address(dj), address(partial), torch.get_num_threads()),
        )
        if gradients is not None:
            d_layer, d_norm = partial[0].split((2 * size, 2 * channels))
            gradients[id(linear.weight)] = self.products.mm(dj.t(), self.steps)
            _put(gradients, self.merge.norm, d_norm)
            _put(gradients, layer, d_layer)
        low, weights = self.products.rounded(dj), linear.weight.split(channels, dim=1)
        d_steps = [self.products.mm(low, weight).view_as(g) for weight in weights]
        return ds, d_steps


class LayerNorm:
    """A LayerNorm over all but the first axis."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x`` (B, *shape)."""
        norm = self.norm
        shape = list(norm.normalized_shape)
        self.x = x
        z, self.mean, self.rstd = _aten.native_layer_norm(
            x, shape, norm.weight, norm.bias, norm.eps
        )
        result: Tensor = z
        return result

    def backward(self, g: Tensor, gradients: Gradients | None) -> Tensor:
        """Return the gradient of x for ``g`` (B, *shape)."""
        norm, wanted = self.norm, gradients is not None
        shape = list(norm.normalized_shape)
        dx, weight, bias = _aten.native_layer_norm_backward(
            *(g, self.x, shape, self.mean, self.rstd, norm.weight, norm.bias),
            [True, wanted, wanted],
        )
        if gradients is not None:
            gradients[id(norm.weight)], gradients[id(norm.bias)] = weight, bias
        result: Tensor = dx
        return result


class Classifier:
    """The head: LayerNorm over all Cells, ReLU, linear."""

    def __init__(self, head: Head) -> None:
        self.norm, self.linear = LayerNorm(head.norm), head.classifier

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the Cells' ``outputs`` (B, L, C)."""
        self.h = self.norm.forward(torch.cat(tuple(outputs), dim=-1)).relu_()
        return F.linear(self.h.flatten(1), self.linear.weight, self.linear.bias)

    def backward(self, g: Tensor, gradients: Gradients | None) -> Tensor:
        """Return the gradient (B, L, N*C) of the outputs side by side for ``g`` (B, K)."""
        if gradients is not None:
            gradients[id(self.linear.weight)] = torch.mm(g.t(), self.h.flatten(1))
            gradients[id(self.linear.bias)] = g.sum(0)
        dh = torch.mm(g, self.linear.weight).view_as(self.h)
        return self.norm.backward(_aten.threshold_backward(dh, self.h, 0), gradients)


def _put(gradients: Gradients, norm: nn.BatchNorm1d | nn.LayerNorm, pair: Tensor) -> None:
    weight, bias = pair.view(2, *norm.weight.shape).unbind()
    gradients[id(norm.weight)], gradients[id(norm.bias)] = weight, bias
