"""The supernet's passes as PyTorch functions on top of the kernels, for training.

Legend: B batch, L length, R = B*L rows, C channels, F features, N Cells.

The same interface as in ``bmnas.fused``. The gradient of a bias in front of a BatchNorm is zero
here, not what rounding leaves of it: in training the BatchNorm takes the bias away again.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bmnas.native.calls import BLOCK, CHUNKS, NormStruct, StepStruct, address, draw_seed, library
from bmnas.primitives import drop_threshold


def reshape_and_mix(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norm: nn.BatchNorm1d,
    dropout: float,
    edges: Tensor,
) -> Tensor:
    """Return the relaxed inputs (N, R, C) of all Cells, as far as they come from features.

    ``features`` are (B, L, C_raw), ``weights`` (C_raw, C), ``edges`` (N, F); ``norm`` normalises
    all F*C channels.
    """
    result = _ReshapeAndMix.apply(  # type: ignore[no-untyped-call]
        norm, dropout, edges, norm.weight, norm.bias, *features, *weights, *biases
    )
    return cast(Tensor, result)


class _ReshapeAndMix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        norm: nn.BatchNorm1d,
        dropout: float,
        edges: Tensor,
        weight: Tensor,
        bias: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        count = len(tensors) // 3
        features = [x.flatten(0, 1) for x in tensors[:count]]
        weights, biases = tensors[count : 2 * count], tensors[2 * count :]
        rows, channels = len(features[0]), weights[0].shape[1]
        x = weight.new_empty((count, rows, channels))
        for out, feature, w, b in zip(x, features, weights, biases, strict=True):
            torch.addmm(b, feature, w, out=out)
        edges = edges.contiguous()
        y, mean, rstd = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        mixed = x.new_empty((len(edges), rows, channels))
        threshold, factor = drop_threshold(dropout)
        library().reshape_forward(
            *(count, rows, channels, len(edges), address(x), address(edges)),
            *(byref(NormStruct.of(norm, mean, rstd)), threshold, factor, draw_seed(threshold)),
            *(address(y), address(mixed), torch.get_num_threads()),
        )
        ctx.norm, ctx.factor, ctx.biases = norm, factor, [torch.zeros_like(b) for b in biases]
        ctx.save_for_backward(edges, weight, bias, x, y, mean, rstd, *features)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        edges, weight, bias, x, y, mean, rstd, *features = ctx.saved_tensors
        g = g.contiguous()
        count, rows, channels = x.shape
        dx, d_weight, d_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        blocks = -(-channels // BLOCK)
        d_edges = torch.empty((count, blocks, len(edges)), dtype=torch.float64)
        library().reshape_backward(
            *(count, rows, channels, len(edges), address(g), address(x), address(y)),
            *(address(edges), byref(NormStruct.of(ctx.norm, mean, rstd)), ctx.factor),
            *(address(dx), address(d_weight), address(d_bias), address(d_edges)),
            torch.get_num_threads(),
        )
        wanted = ctx.needs_input_grad[5 + count]
        of_weights = [f.t() @ d if wanted else None for f, d in zip(features, dx, strict=True)]
        return (
            *(None, None, d_edges.sum(1).t().to(x.dtype), d_weight, d_bias),
            *([None] * count),
            *of_weights,
            *ctx.biases,
        )


def relaxed_step(
    t: Tensor,
    gamma: Tensor,
    glu: nn.Linear,
    concat: nn.Linear,
    norm: nn.BatchNorm1d,
    attention_norm: nn.LayerNorm,
    dropout: float,
    attention_dropout: float,
) -> Tensor:
    """Return the mixture (B, L, C) of the whole pool over ``t`` (B, L, C), weighted by gamma.

    ``glu`` (C to 2C) and ``concat`` (2C to C) are the operations' layers, ``norm`` their BatchNorm.
    """
    thresholds = *drop_threshold(dropout), *drop_threshold(attention_dropout)
    affine = norm.weight, norm.bias, attention_norm.weight, attention_norm.bias
    layers = glu.weight, glu.bias, concat.weight, concat.bias
    result = _RelaxedStep.apply(  # type: ignore[no-untyped-call]
        norm, attention_norm.eps, thresholds, t, gamma, *affine, *layers
    )
    return cast(Tensor, result)


class _RelaxedStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        norm: nn.BatchNorm1d,
        eps: float,
        drop: tuple[int, float, int, float],
        t: Tensor,
        gamma: Tensor,
        weight: Tensor,
        bias: Tensor,
        a_weight: Tensor,
        a_bias: Tensor,
        glu: Tensor,
        glu_bias: Tensor,
        concat: Tensor,
        concat_bias: Tensor,
    ) -> Tensor:
        t, gamma = t.contiguous(), gamma.contiguous()
        first, second = concat.chunk(2, dim=1)
        folded = torch.cat((glu, first + second))  # concat_fc gets t twice
        products = F.linear(t.flatten(0, 1), folded, torch.cat((glu_bias, concat_bias)))
        mean, rstd = torch.empty_like(weight), torch.empty_like(weight)
        batch, length, channels = t.shape
        attention = t.new_empty((batch, length, length))
        a_mean, a_rstd = t.new_empty(batch), t.new_empty(batch)
        scratch = t.new_empty((torch.get_num_threads(), length * channels))
        out = torch.empty_like(t)
        step = StepStruct(
            *(batch, length, channels, address(gamma), NormStruct.of(norm, mean, rstd)),
            *(address(a_weight), address(a_bias), eps, drop[0], drop[2], drop[1], drop[3]),
            *(draw_seed(drop[0], drop[2]), torch.get_num_threads()),
        )
        addresses = [address(x) for x in (t, products, attention, a_mean, a_rstd, scratch, out)]
        library().mixture_forward(byref(step), *addresses)
        ctx.step = step
        # The struct holds bare addresses; what it points at is kept alive here.
        ctx.save_for_backward(
            *(t, products, attention, a_mean, a_rstd, folded),
            *(gamma, weight, bias, a_weight, a_bias, mean, rstd),
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        t, products, attention, a_mean, a_rstd, folded, *_ = ctx.saved_tensors
        batch, length, channels = t.shape
        g, size, step = g.contiguous(), length * channels, ctx.step
        step.threads = torch.get_num_threads()
        chunks = min(CHUNKS, batch)
        dt, dp = torch.empty_like(t), torch.empty_like(products)
        scratch = t.new_empty((step.threads, 2 * size + length * length))
        partial = t.new_empty((chunks, 2 * size + 6 * channels))
        d_gamma = torch.empty((chunks, 5), dtype=torch.float64)
        inputs = g, t, products, attention, a_mean, a_rstd, scratch
        outputs = dt, dp, partial, d_gamma
        addresses = [address(x) for x in (*inputs, *outputs)]
        library().mixture_backward(byref(step), chunks, *addresses)

        rows = t.flatten(0, 1)
        dt.view_as(rows).addmm_(dp, folded)
        a_affine, affine = partial[0].split((2 * size, 6 * channels))
        a_weight, a_bias = a_affine.view(2, length, channels).unbind()
        weight, bias = affine.view(2, -1).unbind()
        of_layers: tuple[Tensor | None, ...] = (None, None, None, None)
        if ctx.needs_input_grad[9]:
            glu, joint = torch.mm(dp.t(), rows).tensor_split((2 * channels,))
            biases = torch.zeros_like(weight).tensor_split((2 * channels,))
            of_layers = glu, biases[0], joint.repeat(1, 2), biases[1]
        d_gamma = d_gamma.sum(0).to(t.dtype)
        return None, None, None, dt, d_gamma, weight, bias, a_weight, a_bias, *of_layers


def cell_output(
    s: Tensor,
    outputs: Sequence[Tensor],
    merge: nn.Linear,
    merge_norm: nn.BatchNorm1d,
    norm: nn.LayerNorm,
    dropout: float,
) -> Tensor:
    """Return LayerNorm(s + dropout(ReLU(BatchNorm(merge(outputs))))), all (B, L, C)."""
    drop = drop_threshold(dropout)
    affine = merge_norm.weight, merge_norm.bias, norm.weight, norm.bias
    result = _CellOutput.apply(  # type: ignore[no-untyped-call]
        merge_norm, norm.eps, drop, s, *affine, merge.weight, merge.bias, *outputs
    )
    return cast(Tensor, result)


class _CellOutput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        norm: nn.BatchNorm1d,
        eps: float,
        drop: tuple[int, float],
        s: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        merge: Tensor,
        merge_bias: Tensor,
        *outputs: Tensor,
    ) -> Tensor:
        s = s.contiguous()
        batch, length, channels = s.shape
        steps = torch.cat(outputs, dim=-1).flatten(0, 1)
        joined = F.linear(steps, merge, merge_bias)
        mean, rstd = torch.empty_like(norm_weight), torch.empty_like(norm_weight)
        a_mean, a_rstd = s.new_empty(batch), s.new_empty(batch)
        residual, z = torch.empty_like(s), torch.empty_like(s)
        ctx.drop = *drop, draw_seed(drop[0])
        library().output_forward(
            *(batch, length, channels, address(s), address(joined)),
            *(byref(NormStruct.of(norm, mean, rstd)), address(weight), address(bias), eps),
            *(*ctx.drop, address(a_mean), address(a_rstd), address(residual), address(z)),
            torch.get_num_threads(),
        )
        ctx.norm, ctx.count = norm, len(outputs)
        ctx.save_for_backward(
            *(steps, joined, merge, mean, rstd, residual, a_mean, a_rstd),
            *(weight, norm_weight, norm_bias),
        )
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        steps, joined, merge, mean, rstd, residual, a_mean, a_rstd, weight, *_ = ctx.saved_tensors
        g = g.contiguous()
        batch, length, channels = g.shape
        size, chunks = length * channels, min(CHUNKS, batch)
        ds, dj = torch.empty_like(g), torch.empty_like(joined)
        partial = g.new_empty((chunks, 2 * size + 2 * channels))
        library().output_backward(
            *(batch, length, channels, chunks, address(g), address(joined), address(residual)),
            *(byref(NormStruct.of(ctx.norm, mean, rstd)), address(weight)),
            *(address(a_mean), address(a_rstd), *ctx.drop),
            *(address(ds), address(dj), address(partial), torch.get_num_threads()),
        )
        d_weight, d_bias = partial[0, : 2 * size].view(2, length, channels).unbind()
        of_norm = partial[0, 2 * size :].view(2, channels).unbind()
        d_steps = torch.mm(dj, merge).view(batch, length, -1).chunk(ctx.count, dim=-1)
        d_merge = torch.mm(dj.t(), steps) if ctx.needs_input_grad[8] else None
        no_bias = torch.zeros_like(mean)
        return None, None, None, ds, *of_norm, d_weight, d_bias, d_merge, no_bias, *d_steps
