"""BatchNorm and dropout over the whole batch of several processes.

Legend: B samples of all ranks, b of this one, C channels, R rows that a channel has in all ranks.

torch's SyncBatchNorm does the same on GPUs alone; this one runs wherever the process group does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bmnas.machine.distribution import ranks
from bmnas.machine.distribution.share import Share, current

_aten = torch.ops.aten
_Norms = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def norm_forward(
    share: Share,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return BN(x) over the batch of all ranks, and its mean (C) and 1 / deviation (C).

    ``x`` is (b, C, *rest), this rank's part. ``running``, mean and variance, is updated.
    """
    mean, variance, rows = _statistics(share, x)
    if running is not None:
        running_mean, running_variance = running
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (rows / (rows - 1))
        running_variance.lerp_(unbiased.to(running_variance.dtype), momentum)
    y = _aten.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
    return y, mean, (variance + eps).rsqrt()


def norm_backward(
    share: Share, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias for the gradient ``g`` of BN(x).

    That of x knows all ranks; those of weight and bias are this rank's part of the sum.
    """
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    normal = (x - mean.view(shape)) * rstd.view(shape)
    d_bias, d_weight = g.sum(axes), (g * normal).sum(axes)
    sums = torch.stack((d_bias, d_weight))
    dist.all_reduce(sums)
    mean_g, mean_gx = (sums / _rows(share, x)).unbind()
    dx = (g - mean_g.view(shape) - normal * mean_gx.view(shape)) * (weight * rstd).view(shape)
    return dx, d_weight, d_bias


@contextlib.contextmanager
def synchronised(network: nn.Module) -> Iterator[None]:
    """Let the BatchNorms and Dropouts inside ``network`` see the whole batch of several ranks."""
    changed: list[nn.Module] = []
    if ranks.size() > 1:
        for module in network.modules():
            # For this instance alone, and not for long: its class, and so its file, stay.
            if isinstance(module, _Norms):
                vars(module)["forward"] = partial(_norm, module)
            elif type(module) is nn.Dropout:
                vars(module)["forward"] = partial(_dropout, module)
            else:
                continue
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def _norm(norm: _Norms, x: Tensor) -> Tensor:
    share = current()
    if share is None or not norm.training:
        return type(norm).forward(norm, x)
    running, momentum = None, norm.momentum
    if norm.running_mean is not None and norm.running_var is not None:
        running = norm.running_mean, norm.running_var
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    weight = x.new_ones(x.shape[1]) if norm.weight is None else norm.weight
    bias = x.new_zeros(x.shape[1]) if norm.bias is None else norm.bias
    state = share, running, momentum or 0.0, norm.eps
    return cast(Tensor, _BatchNorm.apply(x, weight, bias, state))  # type: ignore[no-untyped-call]


def _dropout(dropout: nn.Dropout, x: Tensor) -> Tensor:
    share = current()
    whole = None if share is None or not dropout.training else share.whole(x)
    if whole is None:
        return F.dropout(x, dropout.p, dropout.training)
    shape, rows = whole
    # The very mask that one process would draw for the whole batch.
    ones = torch.ones(shape, dtype=x.dtype, device=x.device)
    return x * F.dropout(ones, dropout.p, True)[rows]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, state: Any) -> Tensor:
        share, running, momentum, eps = state
        y, mean, rstd = norm_forward(share, x, weight, bias, running, momentum, eps)
        ctx.share = share
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *norm_backward(ctx.share, g, *ctx.saved_tensors), None


def _statistics(share: Share, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean (C), variance (C) and R, joined as in Chan, Golub and LeVeque (1979)."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    own = torch.stack((mean, variance))
    each = [torch.empty_like(own) for _ in share.counts]
    dist.all_gather(each, own)
    means, variances = torch.stack(each, dim=1)
    mean = _mean_over_samples(share, means)
    variance = _mean_over_samples(share, variances + (means - mean).square())
    return mean, variance, _rows(share, x)


def _mean_over_samples(share: Share, values: Tensor) -> Tensor:
    """Return the mean over all samples, from that of every rank's samples (ranks, C)."""
    counts = share.counts
    if min(counts) == max(counts):
        return values.mean(0)  # the usual case, for which a GPU need not wait for any numbers
    return (values * values.new_tensor(counts).unsqueeze(1)).sum(0) / share.total


def _rows(share: Share, x: Tensor) -> int:
    """Return R: every sample has equally many rows of a channel."""
    own = x.numel() // x.shape[1]
    return own * share.total // (share.stop - share.start)
