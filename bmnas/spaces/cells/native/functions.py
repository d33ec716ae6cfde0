"""The kernels as functions that torch differentiates: features, and the mixture of a step.

Legend: B batch, L length, R = B*L rows, C channels, F features, N Cells. A function's last input
is what it needs besides tensors that have gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bmnas.features.layers import keep_statistics
from bmnas.spaces.cells.native.calls import BLOCK, CHUNKS, Drop, call


@dataclass(frozen=True)
class Norm:
    """The BatchNorms of columns side by side, as one; ``keep`` puts their statistics back."""

    norms: list[nn.BatchNorm1d]
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float

    @classmethod
    def of(cls, norms: list[nn.BatchNorm1d]) -> Norm:
        """Return the state of ``norms``, which must keep running statistics, alike."""
        first = norms[0]
        if first.momentum is None:
            raise ValueError("expected BatchNorms with a momentum")
        mean, variance = (
            torch.cat([getattr(norm, name) for norm in norms])
            for name in ("running_mean", "running_var")
        )
        return cls(norms, mean, variance, first.momentum, first.eps)

    @property
    def state(self) -> tuple[Tensor, Tensor, float, float]:
        """What the kernels read and update."""
        return self.running_mean, self.running_var, self.momentum, self.eps

    def keep(self) -> None:
        """Give the modules the running statistics that a kernel updated."""
        keep_statistics(self.norms, self.running_mean, self.running_var)


class ReshapeAndMix(torch.autograd.Function):
    """BatchNorm, ReLU and dropout of all features, and their edges to all Cells.

    From edges (N, F), weight and bias (F*C) and F products (R, C) to (N, R, C).
    """

    @staticmethod
    def forward(
        ctx: Any, norm: Norm, drop: Drop, edges: Tensor, weight: Tensor, bias: Tensor, *x: Tensor
    ) -> Tensor:
        """Return the relaxed inputs of the Cells, as far as they come from features."""
        (rows, channels), edges = x[0].shape, edges.contiguous()
        mean, rstd = torch.empty_like(weight), torch.empty_like(weight)
        y = weight.new_empty((len(x), rows, channels))
        mixed = weight.new_empty((len(edges), rows, channels))
        ctx.shape, ctx.drop = (len(x), rows, channels, len(edges)), drop
        affine = weight, bias, *norm.state
        call("reshape_forward", *ctx.shape, x, edges, *affine, *drop, mean, rstd, y, mixed)
        norm.keep()
        ctx.save_for_backward(edges, weight, mean, rstd, y, *x)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs."""
        edges, weight, mean, rstd, y, *x = ctx.saved_tensors
        blocks = -(-x[0].shape[1] // BLOCK)
        dx = torch.empty_like(y) if any(ctx.needs_input_grad[5:]) else None
        d_weight, d_bias = torch.empty_like(weight), torch.empty_like(weight)
        d_edges = g.new_empty((len(x), blocks, len(g)), dtype=torch.float64)
        inputs = g.contiguous(), x, y, edges, ctx.drop.factor, weight, mean, rstd
        call("reshape_backward", *ctx.shape, *inputs, dx, d_weight, d_bias, d_edges)
        each = [None] * len(x) if dx is None else dx.unbind()
        return None, None, d_edges.sum(1).t().to(g.dtype), d_weight, d_bias, *each


@dataclass(frozen=True)
class StepState:
    """What a relaxed step needs besides tensors that have gradients."""

    norm: Norm
    layer_eps: float  # of the attention's LayerNorm
    drop: Drop
    attention_drop: Drop

    @property
    def drops(self) -> tuple[int, float, int, int, float]:
        """The dropouts as the kernels take them, with one seed."""
        seed = self.drop.seed ^ self.attention_drop.seed
        return (*self.drop[:2], seed, *self.attention_drop[:2])


class Mixture(torch.autograd.Function):
    """The mixture of the pool over t (B, L, C).

    From t, products (R, 3C) of value, gate and joint, gamma (5), the weight and bias of their
    BatchNorm (3C) and of the attention's LayerNorm (L, C).
    """

    @staticmethod
    def forward(
        ctx: Any,
        state: StepState,
        t: Tensor,
        products: Tensor,
        gamma: Tensor,
        weight: Tensor,
        bias: Tensor,
        layer_weight: Tensor,
        layer_bias: Tensor,
    ) -> Tensor:
        """Return the mixture (B, L, C)."""
        batch, length, channels = t.shape
        mean, rstd = torch.empty_like(weight), torch.empty_like(weight)
        attention = t.new_empty((batch, length, length))
        layer_mean, layer_rstd = t.new_empty(batch), t.new_empty(batch)
        scratch = t.new_empty((torch.get_num_threads(), length * channels))
        out = torch.empty_like(t)
        gamma = gamma.contiguous()
        call(
            "mixture_forward",
            *(*t.shape, t, products, gamma, weight, bias, *state.norm.state),
            *(layer_weight, layer_bias, state.layer_eps, *state.drops),
            *(mean, rstd, attention, layer_mean, layer_rstd, scratch, out),
        )
        state.norm.keep()
        ctx.drops = state.drops
        ctx.save_for_backward(
            *(t, products, gamma, weight, bias, mean, rstd, layer_weight, layer_bias),
            *(attention, layer_mean, layer_rstd),
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs."""
        t, products, *parameters, attention, layer_mean, layer_rstd = ctx.saved_tensors
        batch, length, channels = t.shape
        size, chunks = length * channels, min(CHUNKS, batch)
        dt, dp = torch.empty_like(t), torch.empty_like(products)
        scratch = t.new_empty((torch.get_num_threads(), 2 * size + length * length))
        partial = t.new_empty((chunks, 2 * size + 6 * channels))
        d_gamma = t.new_empty((chunks, len(parameters[0])), dtype=torch.float64)
        inputs = g.contiguous(), t, products, *parameters, *ctx.drops
        scores = attention, layer_mean, layer_rstd
        outputs = dt, dp, partial, d_gamma
        call("mixture_backward", *t.shape, chunks, *inputs, *scores, scratch, *outputs)
        layer, norm = partial[0].split((2 * size, 6 * channels))
        of_layer = layer.view(2, length, channels).unbind()
        return None, dt, dp, d_gamma.sum(0).to(g.dtype), *norm.view(2, -1).unbind(), *of_layer
