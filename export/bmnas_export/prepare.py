"""A copy of a trained network that computes the same with operators that ONNX has.

Legend: B batch, L length, C_raw channels of a raw feature, K classes, T time, H height, W width,
M mel bands, F bins of frequency.
"""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.backbones.waveform import FLOOR, LogMel
from bmnas.features.layers import LinearNorm
from bmnas.features.reshape import Pool
from bmnas.pipeline.multimodal import MultimodalNetwork
from bmnas.training.heads import TaskHead

M = TypeVar("M", bound=nn.Module)


class ExportPool(Pool):
    """``Pool`` without adaptive operators, which do not export; the values are the same.

    Not for training: among equal maxima it may send the gradient elsewhere.
    """

    def pool_1d(self, x: Tensor) -> Tensor:
        """Return the adaptive max pooling of (B, C_raw, T) to (B, C_raw, L)."""
        time = x.shape[2]
        if time % self.length == 0:
            return F.max_pool1d(x, time // self.length)
        return _max_over_windows(x, 2, self.length)

    def pool_2d(self, x: Tensor, side: int) -> Tensor:
        """Return the adaptive max pooling of (B, C_raw, H, W) to (B, C_raw, side, side)."""
        height, width = x.shape[2:]
        if height % side == 0 and width % side == 0:
            return F.max_pool2d(x, (height // side, width // side))
        # A window is a rectangle: its maximum may be taken axis by axis.
        return _max_over_windows(_max_over_windows(x, 2, side), 3, side)


class ExportLogMel(nn.Module):
    """``LogMel`` with half the products, equal up to rounding.

    A frame's samples n and N - n meet the same cosine, and sines of opposite signs: their sums and
    differences are multiplied, N/2 numbers each. Kernels are windowed, and the window, which is
    symmetric, is 0 at n = 0. A frame starts where the first half of the one before ends.
    """

    cosines: Tensor
    sines: Tensor
    filters: Tensor

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__()
        self.frames, self.hop, self.padding = log_mel.frames, log_mel.hop, log_mel.padding
        kernels = log_mel.kernels[:, 0, 1 : self.hop + 1].double() * log_mel.gain.double()
        cosines, sines = kernels.T.chunk(2, dim=1)  # (N/2, F) each
        halved = torch.ones(self.hop, 1, dtype=torch.float64)
        halved[-1] = 0.5  # the sample N/2 is its own partner
        self.register_buffer("cosines", (halved * cosines).float().contiguous())
        self.register_buffer("sines", sines.float().contiguous())
        self.register_buffer("filters", log_mel.filters)

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-mel spectrogram (B, frames, M) of waveforms (B, T)."""
        x = F.pad(x.to(self.cosines.dtype), (0, self.padding))
        early = self._cut(x, 1)
        late = self._cut(x, self.hop).flip(2)
        real, imaginary = (early + late) @ self.cosines, (early - late) @ self.sines
        # Not ``square``: Pow takes longer in onnxruntime.
        power = (real * real + imaginary * imaginary) @ self.filters
        return (power + FLOOR).log()

    def _cut(self, x: Tensor, start: int) -> Tensor:
        """Return the N/2 samples (B, frames, N/2) of each frame from its sample ``start`` on."""
        long = x[:, start : start + self.frames * self.hop]
        return long.reshape(-1, self.frames, self.hop)


class ExportNetwork(nn.Module):
    """The network as it is served: raw inputs to the outputs of its ``head``, float32 each."""

    def __init__(self, network: MultimodalNetwork, head: TaskHead) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what is served, logits (B, K) the first, of a raw input (B, *shape) a modality."""
        return self.head.served(self.network(*inputs).float())


def reference_network(network: nn.Module) -> MultimodalNetwork:
    """Return a copy in evaluation mode on the CPU, without ``torch.compile``'s wrappers."""
    plain = copy.deepcopy(_unwrapped(network))
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if child is not _unwrapped(child):
                setattr(parent, name, _unwrapped(child))
    return cast(MultimodalNetwork, plain.cpu().eval().requires_grad_(False))


def prepare(network: MultimodalNetwork, head: TaskHead) -> ExportNetwork:
    """Return what ``network`` computes as a new network that can be exported.

    Pooling loses its adaptive operators, spectrograms half of their products, and each linear
    layer takes in the BatchNorm that follows it. ``network`` comes from ``reference_network`` and
    is left as it is.
    """
    return ExportNetwork(exportable(network), head).eval()


def exportable(module: M) -> M:
    """Return a copy of ``module`` whose inner modules are such that can be exported.

    It is for inference, without dropout. Its weights are those of ``module``, but for folded ones.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    prepared = copy.deepcopy(module, shared)
    for parent in list(prepared.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LinearNorm):
                setattr(parent, name, fold_norm(child))
            elif isinstance(child, Pool):
                setattr(parent, name, ExportPool(child.length))
            elif isinstance(child, LogMel):
                setattr(parent, name, ExportLogMel(child))
            elif type(child) is nn.Dropout:
                # Tracing what does nothing takes as long as tracing what does something.
                setattr(parent, name, nn.Identity())
    return prepared


@torch.no_grad()
def fold_norm(layer: LinearNorm) -> nn.Linear:
    """Return one linear layer that computes linear and BatchNorm with its running statistics.

    W' = g W / sqrt(v + eps), b' = g (b - m) / sqrt(v + eps) + h, in float64 until the end.
    """
    linear, norm = layer.linear, layer.norm
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    folded = nn.Linear(linear.in_features, linear.out_features)
    folded.weight.copy_(scale[:, None] * linear.weight.double())
    folded.bias.copy_(scale * (linear.bias.double() - mean.double()) + norm.bias.double())
    return folded.requires_grad_(False)


def _max_over_windows(x: Tensor, axis: int, length: int) -> Tensor:
    """Return the maxima over ``length`` windows of an axis, as adaptive max pooling cuts them."""
    size = x.shape[axis]
    starts = [i * size // length for i in range(length)]
    ends = [-((i + 1) * size // -length) for i in range(length)]
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    # Shorter windows see their last position again, which does not change a maximum.
    places = [
        min(start + k, end - 1)
        for start, end in zip(starts, ends, strict=True)
        for k in range(longest)
    ]
    index = torch.tensor(places, device=x.device)
    # With the channels last a position is copied as a whole, not number by number.
    last = x.movedim(1, -1).index_select(axis - 1, index)
    return torch.unflatten(last, axis - 1, (length, longest)).amax(axis).movedim(-1, 1)


def _unwrapped(module: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module
