"""Layers that networks of every kind are made of: dropout, and linear with BatchNorm.

Legend: B batch, L length, C channels; channels-last, (B, L, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

_BYTE = 256


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by 1 / (1 - p).

    On a CPU the mask is cut out of 64-bit random numbers, eight elements from each, and compared
    straight into floating point, which is many times faster than one draw per element; ``p`` is
    then rounded to a multiple of 1/256. It is one function to what records the functions of torch.
    """
    if has_torch_function_unary(x):
        result: Tensor = handle_torch_function(dropout, (x,), x, p, training)
        return result
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    if not training or p == 0.0:
        return x
    threshold = min(max(round(p * _BYTE), 1), _BYTE - 1)  # bytes below it drop their element
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    random = words.view(torch.uint8)[: x.numel()].view(x.shape)
    # A boolean mask would be converted again in every product, which costs more than the product.
    mask = torch.ge(random, threshold, out=torch.empty(x.shape, dtype=x.dtype))
    return x * mask.mul_(_BYTE / (_BYTE - threshold))


class Dropout(nn.Module):
    """``dropout`` as a module."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with elements dropped in training mode, unchanged in evaluation mode."""
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """Show the probability when the module is printed."""
        return f"p={self.p}"


class LinearNorm(nn.Module):
    """Linear layer with bias, then BatchNorm over channels: (B, L, C_in) to (B, L, C_out)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels_in, channels_out)
        self.norm = nn.BatchNorm1d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(x W + b), the statistics taken over batch and length."""
        return batch_norm(linear(x, self.linear.weight, self.linear.bias), self.norm)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x W + b, as ``F.linear`` does; what trains on a CPU has it from a convolution.

    Where MKL is slow, as on AMD's processors, oneDNN takes half its time in float32. Torch leaves
    convolutions to it, but of the products only those in half precision.
    """
    on_cpu, half = x.device.type == "cpu", torch.is_autocast_enabled(x.device.type)
    ordinary = not on_cpu or half or not torch.is_grad_enabled()
    if ordinary or torch.compiler.is_compiling() or has_torch_function_unary(x):
        return F.linear(x, weight, bias)
    # One image, one column wide, whose pixels are the rows of x; a pixel's channels lie together.
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def batch_norm(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Apply ``norm`` over the last axis of ``x`` (..., C)."""
    # As a matrix of rows the kernel of torch is ten times faster than on (B, C, L).
    y: Tensor = norm(x.reshape(-1, x.shape[-1]).to(norm.weight.dtype))
    return y.view(x.shape)


def normalise_together(x: Tensor, norms: Sequence[nn.BatchNorm1d]) -> Tensor:
    """Apply ``norms`` to the columns of the rows ``x`` (R, C), side by side, as one BatchNorm."""
    first = norms[0]
    weight, bias = (torch.cat([getattr(n, name) for n in norms]) for name in ("weight", "bias"))
    if isinstance(first, nn.SyncBatchNorm):  # which talks to the other ranks
        parts = x.split([norm.num_features for norm in norms], dim=1)
        return torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=1)
    x = x.to(weight.dtype)  # autocast leaves products in half precision
    if first.running_mean is None or first.momentum is None:
        return F.batch_norm(x, None, None, weight, bias, True, eps=first.eps)
    mean, variance = (
        torch.cat([getattr(norm, name) for norm in norms])
        for name in ("running_mean", "running_var")
    )
    training, momentum = first.training, first.momentum
    y = F.batch_norm(x, mean, variance, weight, bias, training, momentum, first.eps)
    if training:
        keep_statistics(norms, mean, variance)
    return y


@torch.no_grad()
def keep_statistics(norms: Sequence[nn.BatchNorm1d], mean: Tensor, variance: Tensor) -> None:
    """Give the norms their parts of running statistics that were kept side by side."""
    columns = [norm.num_features for norm in norms]
    for norm, *parts in zip(norms, mean.split(columns), variance.split(columns), strict=True):
        for own, part in zip((norm.running_mean, norm.running_var), parts, strict=True):
            if own is not None:
                own.copy_(part)
