"""BatchNorm over the columns of a matrix with what follows it, forward and backward by hand.

Legend: B batch, L length, R = B*L rows, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bmnas.features.layers import keep_mask
from bmnas.machine.distribution.norms import norm_backward, norm_forward
from bmnas.machine.distribution.share import current
from bmnas.spaces.cells.native.masks import kernels_share, rows_mask

_aten = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """The state of a BatchNorm over the columns of a matrix, apart from its affine part."""

    running_mean: Tensor
    running_var: Tensor
    training: bool
    momentum: float
    eps: float

    @classmethod
    def of(cls, norm: nn.BatchNorm1d) -> Norm:
        """Take the state of ``norm``, which must keep running statistics."""
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None or norm.momentum is None:
            raise ValueError("expected a BatchNorm with running statistics and a momentum")
        return cls(mean, variance, norm.training, norm.momentum, norm.eps)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised rows, and what ``backward`` wants back."""
        share = current()
        if share is not None and self.training:
            running = self.running_mean, self.running_var
            return norm_forward(share, x, weight, bias, running, self.momentum, self.eps)
        result = _aten.native_batch_norm(
            x,
            weight,
            bias,
            self.running_mean,
            self.running_var,
            self.training,
            self.momentum,
            self.eps,
        )
        return cast(tuple[Tensor, Tensor, Tensor], result)

    def backward(
        self, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, weight and bias for the gradient ``g`` of the result."""
        share = current()
        if share is not None and self.training:
            return norm_backward(share, g, x, weight, mean, rstd)
        result = _aten.native_batch_norm_backward(
            g,
            x,
            weight,
            self.running_mean,
            self.running_var,
            mean,
            rstd,
            self.training,
            self.eps,
            [True, True, True],
        )
        return cast(tuple[Tensor, Tensor, Tensor], result)


def norm_relu_dropout(x: Tensor, norm: nn.BatchNorm1d, p: float, groups: int = 1) -> Tensor:
    """Return dropout(ReLU(norm(x))) of the rows ``x`` (R, C), ``groups`` of columns."""
    result = _NormReluDropout.apply(x, norm.weight, norm.bias, Norm.of(norm), p, groups)  # type: ignore[no-untyped-call]
    return cast(Tensor, result)


class _NormReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Norm, p: float, groups: int
    ) -> Tensor:
        share = kernels_share(x) if norm.training and p > 0.0 else None
        mask, factor = (
            keep_mask(x, p, norm.training) if share is None else rows_mask(share, x, p, groups)
        )
        scaled = weight * factor
        y, mean, rstd = norm.forward(x, scaled, bias * factor)
        y.relu_()
        if mask is not None:
            y.mul_(mask)
        ctx.norm, ctx.factor = norm, factor
        ctx.save_for_backward(x, scaled, mean, rstd, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, y = ctx.saved_tensors
        passed = _aten.threshold_backward(g, y, 0)
        dx, dw, db = ctx.norm.backward(passed, x, weight, mean, rstd)
        return dx, dw * ctx.factor, db * ctx.factor, None, None, None
