"""Layers of many networks at once: the weights of G equal layers, stacked along a leading axis.

Legend: G candidates, B batch, L length, R = B*L rows, C channels, k of the G candidates. Every
layer is made of G layers of the primitives, whose values it takes over, and computes for each
candidate what its own layer would. A gradient of the sum of the candidates' losses holds the
gradient of every candidate, as none reads the weights of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bmnas.features.layers import Dropout, LinearNorm, dropout, keep_mask, normalise_together
from bmnas.features.reshape import Projection
from bmnas.spaces.cells.primitives import Attention, LinearGLU


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach() for tensor in tensors])


class StackedLinear(nn.Module):
    """G linear layers: (G, R, C_in) to (G, R, C_out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(_stack([layer.weight.t() for layer in layers]))
        self.bias = nn.Parameter(_stack([layer.bias for layer in layers]).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + b of every candidate."""
        return torch.baddbmm(self.bias, x, self.weight)


class StackedLinearNorm(nn.Module):
    """G times linear, then BatchNorm over the rows: (G, R, C_in) to (G, R, C_out).

    With ``dropout``, ReLU and dropout follow.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layers: Sequence[LinearNorm], dropout: float | None = None) -> None:
        super().__init__()
        self.linear = StackedLinear([layer.linear for layer in layers])
        norms = [layer.norm for layer in layers]
        self.weight = nn.Parameter(_stack([norm.weight for norm in norms]).unsqueeze(1))
        self.bias = nn.Parameter(_stack([norm.bias for norm in norms]).unsqueeze(1))
        means = [cast(Tensor, norm.running_mean) for norm in norms]
        variances = [cast(Tensor, norm.running_var) for norm in norms]
        self.register_buffer("running_mean", _stack(means).unsqueeze(1))
        self.register_buffer("running_var", _stack(variances).unsqueeze(1))
        self.eps = norms[0].eps
        self.momentum = cast(float, norms[0].momentum)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(x W + b) of every candidate."""
        h = self.linear(x)
        if self.training:
            mask, factor = (None, 1.0) if self.dropout is None else keep_mask(h, self.dropout, True)
            relu = self.dropout is not None
            y, mean, variance = _Norm.apply(  # type: ignore[no-untyped-call]
                h, self.weight, self.bias, self.eps, relu, mask, factor
            )
            rows = h.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1)), self.momentum)
            return cast(Tensor, y)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        y = torch.addcmul(self.bias - self.running_mean * scale, h, scale)
        return y if self.dropout is None else y.relu()


class _Norm(torch.autograd.Function):
    """BatchNorm over the rows of (G, R, C), with ReLU and a mask of dropout if there are any.

    By hand because autograd makes twice as many passes over memory, which is where the time goes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        relu: bool,
        mask: Tensor | None,
        factor: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = h.mean(1, keepdim=True)
        centred = h - mean
        # Not torch.var_mean, which takes thirty times as long over an axis that is not the last.
        variance = (centred * centred).mean(1, keepdim=True)
        rstd = (variance + eps).rsqrt()
        scale = weight * rstd * factor
        y = torch.addcmul(bias * factor, centred, scale)
        if relu:
            y.relu_()
        if mask is not None:
            y.mul_(mask)
        ctx.factor = factor
        ctx.save_for_backward(centred, rstd, scale, *([y] if relu else []))
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centred, rstd, scale, *kept = ctx.saved_tensors
        if kept:
            # What was dropped is zero in the result, just as what was negative.
            g = torch.ops.aten.threshold_backward(g, kept[0], 0)
        rows = g.shape[1]
        for_bias = g.sum(1, keepdim=True)
        along = (g * centred).sum(1, keepdim=True)
        dh = torch.addcmul(g - for_bias / rows, centred, along * rstd * rstd / -rows).mul_(scale)
        return dh, along * rstd * ctx.factor, for_bias * ctx.factor, None, None, None, None


class StackedLayerNorm(nn.Module):
    """G LayerNorms over (C, L), each sample by itself: (G, B, L, C) to the same."""

    def __init__(self, norms: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.weight = nn.Parameter(_stack([norm.weight.flatten() for norm in norms]).unsqueeze(1))
        self.bias = nn.Parameter(_stack([norm.bias.flatten() for norm in norms]).unsqueeze(1))
        self.eps = norms[0].eps

    def forward(self, x: Tensor) -> Tensor:
        """Return every sample normalised over length and channels."""
        flat = x.flatten(2)
        normal = F.layer_norm(flat, flat.shape[2:], eps=self.eps)
        return torch.addcmul(self.bias, normal, self.weight).view(x.shape)


class SharedProjection(nn.Module):
    """The reshape layers of one feature for k candidates, as one product x @ [W_1 … W_k]."""

    def __init__(self, layers: Sequence[Projection]) -> None:
        super().__init__()
        projects = [layer.project for layer in layers]
        self.weight = nn.Parameter(torch.cat([p.linear.weight.detach() for p in projects]))
        self.bias = nn.Parameter(torch.cat([p.linear.bias.detach() for p in projects]))
        self.norm = nn.BatchNorm1d(len(self.bias), dtype=self.bias.dtype)
        for name, values in self.norm.state_dict().items():
            if values.dim():
                with torch.no_grad():
                    values.copy_(torch.cat([p.norm.state_dict()[name] for p in projects]))
        self.dropout = layers[0].dropout.p
        self.count = len(layers)

    def forward(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """Return the reshaped feature (R, C) of each candidate, of a pooled one (B, L, C_raw)."""
        h = F.linear(pooled.flatten(0, 1), self.weight, self.bias)
        x = dropout(normalise_together(h, [self.norm]).relu(), self.dropout, self.training)
        return x.view(len(x), self.count, -1).unbind(1)


class StackedAttention(nn.Module):
    """G times ``primitives.Attention`` (Eq. 6), on (G, B, L, C)."""

    def __init__(self, layers: Sequence[Attention]) -> None:
        super().__init__()
        self.norm = StackedLayerNorm([layer.norm for layer in layers])
        self.dropout = layers[0].dropout

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the tokens of x gather from those of y."""
        shape, scale = x.shape, 1 / math.sqrt(x.shape[-1])
        x, y = x.flatten(0, 1), y.flatten(0, 1)
        scores = torch.bmm(x, y.transpose(1, 2)) * scale
        z: Tensor = self.norm(self.dropout(torch.bmm(scores.softmax(-1), y).view(shape)))
        return z


class StackedGLU(nn.Module):
    """G times ``primitives.LinearGLU`` (Eq. 7), on (G, B, L, C)."""

    def __init__(self, layers: Sequence[LinearGLU]) -> None:
        super().__init__()
        self.value = StackedLinearNorm([layer.value for layer in layers])
        self.gate = StackedLinearNorm([layer.gate for layer in layers])
        self.dropout = layers[0].dropout

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x gated by y."""
        gated = self.value(x.flatten(1, 2)) * self.gate(y.flatten(1, 2)).sigmoid()
        z: Tensor = self.dropout(gated)
        return z.view(x.shape)


class StackedFC(nn.Module):
    """G times linear, BatchNorm, ReLU and dropout of a concatenation, on (G, B, L, C) each."""

    def __init__(self, layers: Sequence[LinearNorm], dropout: Dropout) -> None:
        super().__init__()
        self.project = StackedLinearNorm(layers, dropout.p)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the projected concatenation of the inputs."""
        joined = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)
        z: Tensor = self.project(joined.flatten(1, 2))
        return z.view(inputs[0].shape)


#: How to stack the layers of each operation that computes something, by its name in files.
STACKED: dict[str, Callable[[Sequence[Any]], nn.Module]] = {
    "sum": lambda layers: layers[0],  # it has no weights
    "attention": StackedAttention,
    "linear_glu": StackedGLU,
    "concat_fc": lambda layers: StackedFC([layer.project for layer in layers], layers[0].dropout),
}
