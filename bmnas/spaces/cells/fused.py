"""Hand-written forward and backward passes of what a supernet spends its time on.

Legend: B batch, L length, R = B*L rows, C channels, F features, N Cells.

A relaxed step is some fifty small operations, and the bookkeeping of automatic differentiation
costs more than their arithmetic; here the passes work in place. Two identities save more of them:
a factor behind a BatchNorm or LayerNorm belongs into its affine part, and where dropout follows
ReLU, one comparison of the result with zero tells what gradient passes both.

None of these functions can be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bmnas.features.layers import keep_mask
from bmnas.spaces.cells.fused_norm import Norm, norm_relu_dropout
from bmnas.spaces.cells.native.masks import kernels_share, step_masks

_aten = torch.ops.aten


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
    layers = zip(features, weights, biases, strict=True)
    projected = torch.cat([torch.addmm(b, x.flatten(0, 1), w) for x, w, b in layers], dim=-1)
    h = norm_relu_dropout(projected, norm, dropout, groups=len(weights))
    return mix_features(edges, h.view(len(h), len(weights), -1))


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
    products = step_products(t.flatten(0, 1), glu, concat)
    # Norms and softmax want full precision; under autocast the products alone have less.
    with torch.autocast(t.device.type, enabled=False):
        return mixture(
            t.to(gamma.dtype),
            products.to(gamma.dtype),
            gamma,
            norm,
            attention_norm,
            dropout,
            attention_dropout,
        )


def cell_output(
    s: Tensor,
    outputs: Sequence[Tensor],
    merge: nn.Linear,
    merge_norm: nn.BatchNorm1d,
    norm: nn.LayerNorm,
    dropout: float,
) -> Tensor:
    """Return LayerNorm(s + dropout(ReLU(BatchNorm(merge(outputs))))), all (B, L, C)."""
    joined = merge(torch.cat(tuple(outputs), dim=-1).flatten(0, 1))
    merged = norm_relu_dropout(joined, merge_norm, dropout)
    z: Tensor = norm(s + merged.view_as(s))
    return z


def weighted_sum(weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of ``terms``, each times its entry of ``weights``."""
    same = [term.to(weights.dtype) for term in terms]
    return cast(Tensor, _WeightedSum.apply(weights, *same))  # type: ignore[no-untyped-call]


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *terms)
        total = terms[0] * weights[0]
        for weight, term in zip(weights[1:].unbind(), terms[1:], strict=True):
            total.addcmul_(term, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weights, *terms = ctx.saved_tensors
        dw = None
        if ctx.needs_input_grad[0]:
            dw = torch.stack([torch.dot(g.flatten(), term.flatten()) for term in terms])
        return dw, *(g * weight for weight in weights.unbind())


def mix_features(weights: Tensor, h: Tensor) -> Tensor:
    """Return the sums of the features ``h`` (R, F, C) weighted by ``weights`` (N, F): (N, R, C)."""
    return cast(Tensor, _MixFeatures.apply(weights, h))  # type: ignore[no-untyped-call]


class _MixFeatures(torch.autograd.Function):
    # Batched products of rows: the einsum of torch is several times slower, backward above all.
    @staticmethod
    def forward(ctx: Any, weights: Tensor, h: Tensor) -> Tensor:
        # A batched product of anything but dense matrices falls back to a loop over the batch.
        weights = weights.contiguous()
        ctx.save_for_backward(weights, h)
        return torch.bmm(weights.expand(len(h), -1, -1), h).transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, h = (x.to(g.dtype) for x in ctx.saved_tensors)
        dw = (
            torch.bmm(g.transpose(0, 1), h.transpose(1, 2)).sum(0)
            if ctx.needs_input_grad[0]
            else None
        )
        dh = (
            torch.bmm(weights.t().expand(len(h), -1, -1), g.transpose(0, 1))
            if ctx.needs_input_grad[1]
            else None
        )
        return dw, dh


def step_products(t: Tensor, glu: nn.Linear, concat: nn.Linear) -> Tensor:
    """Return value, gate and joint (R, 3C) of the rows ``t`` (R, C) in one product.

    ``concat`` (2C to C) gets t twice, so that its two halves fold into their sum.
    """
    result = _StepProducts.apply(t, glu.weight, glu.bias, concat.weight, concat.bias)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


class _StepProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, t: Tensor, glu: Tensor, glu_bias: Tensor, concat: Tensor, concat_bias: Tensor
    ) -> Tensor:
        first, second = concat.chunk(2, dim=1)
        weight = torch.cat((glu, first + second))
        ctx.save_for_backward(t, weight)
        return F.linear(t, weight, torch.cat((glu_bias, concat_bias)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        t, weight = ctx.saved_tensors
        dt = torch.mm(g, weight.to(g.dtype)) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dt, None, None, None, None
        glu, folded = torch.mm(g.t(), t.to(g.dtype)).tensor_split((2 * t.shape[1],))
        glu_bias, bias = g.sum(0).tensor_split((2 * t.shape[1],))
        return dt, glu, glu_bias, folded.repeat(1, 2), bias


@dataclass(frozen=True)
class MixtureState:
    """What the mixture of a step needs besides tensors: its norms and dropouts."""

    norm: Norm
    eps: float  # of the attention's LayerNorm
    dropout: float
    attention_dropout: float

    @property
    def dropouts(self) -> tuple[float, float, float]:
        """The probabilities of linear_glu, concat_fc and attention."""
        return self.dropout, self.dropout, self.attention_dropout


def mixture(
    t: Tensor,
    products: Tensor,
    gamma: Tensor,
    norm: nn.BatchNorm1d,
    attention_norm: nn.LayerNorm,
    dropout: float,
    attention_dropout: float,
) -> Tensor:
    """Return the mixture (B, L, C) of the whole pool over ``t`` (B, L, C), weighted by gamma.

    ``products`` (R, 3C) are those of ``step_products``; ``norm`` normalises them.
    """
    state = MixtureState(Norm.of(norm), attention_norm.eps, dropout, attention_dropout)
    affine = norm.weight, norm.bias, attention_norm.weight, attention_norm.bias
    result = _Mixture.apply(t, products, gamma, *affine, state)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        t: Tensor,
        products: Tensor,
        gamma: Tensor,
        weight: Tensor,
        bias: Tensor,
        attention_weight: Tensor,
        attention_bias: Tensor,
        state: MixtureState,
    ) -> Tensor:
        channels, training = t.shape[-1], state.norm.training
        share = kernels_share(t) if training else None
        masks = (
            [keep_mask(t, p, training) for p in state.dropouts]
            if share is None
            else step_masks(share, t, state.dropout, state.attention_dropout)
        )
        (keep_glu, factor), (keep_concat, _), (keep_attention, attention_factor) = masks
        _, of_sum, of_attention, of_glu, of_concat = gamma.unbind()

        scale = torch.stack((of_glu * factor, torch.ones_like(of_glu), of_concat * factor))
        scale = scale.repeat_interleave(channels)
        scaled = weight * scale
        y, mean, rstd = state.norm.forward(products, scaled, bias * scale)
        value, gate, joint = y.view(*t.shape[:-1], -1).chunk(3, dim=-1)
        gate.sigmoid_()
        joint.relu_()
        if keep_glu is not None and keep_concat is not None:
            value.mul_(keep_glu)
            joint.mul_(keep_concat)

        # The scores of t with itself are symmetric, and the middle axis is the faster one here.
        attention = torch.bmm(t, t.transpose(1, 2)).mul_(channels**-0.5).softmax(1)
        attended = torch.bmm(attention.transpose(1, 2), t)
        if keep_attention is not None:
            attended.mul_(keep_attention)
        # LayerNorm undoes a factor in front of it, but for eps.
        out, a_mean, a_rstd = _aten.native_layer_norm(
            attended,
            attention_weight.shape,
            attention_weight * of_attention,
            attention_bias * of_attention,
            state.eps / attention_factor**2,
        )
        out.addcmul_(value, gate).add_(joint).add_(t * (2.0 * of_sum))
        ctx.state, ctx.factor = state, factor
        ctx.save_for_backward(
            *(t, products, gamma, weight, bias, scale, attention_weight, attention_bias),
            *(mean, rstd, y, keep_glu, attention, attended, a_mean, a_rstd, keep_attention),
        )
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        # Called inside an autocast block, a backward pass would be subject to it.
        with torch.autocast(g.device.type, enabled=False):
            return _mixture_gradients(ctx, g)


def _mixture_gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    t, products, gamma, weight, bias, scale, a_weight, a_bias, *rest = ctx.saved_tensors
    mean, rstd, y, keep_glu, attention, attended, a_mean, a_rstd, keep_attention = rest
    _, of_sum, of_attention, _, _ = gamma.unbind()

    da, da_weight, da_bias = _aten.native_layer_norm_backward(
        g,
        attended,
        a_weight.shape,
        a_mean,
        a_rstd,
        a_weight * of_attention,
        a_bias,
        [True, True, True],
    )
    if keep_attention is not None:
        da.mul_(keep_attention)
    from_attended = torch.bmm(t, da.transpose(1, 2))
    ds = _aten._softmax_backward_data(from_attended, attention, 1, t.dtype)
    ds.mul_(t.shape[-1] ** -0.5)
    dt = torch.baddbmm(g * (2.0 * of_sum), attention, da)
    dt.baddbmm_(ds + ds.transpose(1, 2), t)

    value, gate, joint = y.view(*t.shape[:-1], -1).chunk(3, dim=-1)
    d_value = g * gate
    if keep_glu is not None:
        d_value.mul_(keep_glu)
    d_gate = _aten.sigmoid_backward(g * value, gate)
    d_joint = _aten.threshold_backward(g, joint, 0)
    dy = torch.cat((d_value, d_gate, d_joint), dim=-1).flatten(0, 1)
    dp, dw, db = ctx.state.norm.backward(dy, products, weight * scale, mean, rstd)

    d_gamma = None
    if ctx.needs_input_grad[2]:
        d_sum = 2.0 * torch.dot(g.flatten(), t.flatten())
        d_attention = (da_weight * a_weight + da_bias * a_bias).sum()
        d_glu, _, d_concat = ((dw * weight + db * bias).view(3, -1).sum(1) * ctx.factor).unbind()
        d_gamma = torch.stack((torch.zeros_like(d_sum), d_sum, d_attention, d_glu, d_concat))
    d_affine = (dw * scale, db * scale, da_weight * of_attention, da_bias * of_attention)
    return dt, dp, d_gamma, *d_affine, None
