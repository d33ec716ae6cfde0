"""The pieces of ``bmnas.spaces.cells.fused``, each beside its plain formula.

Legend: B batch, L length, R = B*L rows, C channels, F features, N Cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.cases import StepCase
from bmnas.features.layers import keep_mask
from bmnas.spaces.cells import fused

#: Draws the next dropout mask of a shape, its factor included.
Keep = Callable[[tuple[int, ...]], Tensor | float]
_F, _N = 3, 2


@dataclass(frozen=True)
class Piece:
    """Layers, inputs on the CPU in float64, and the two forms of one function of both."""

    layers: nn.ModuleDict
    inputs: tuple[Tensor, ...]
    fused: Callable[..., Tensor]
    plain: Callable[..., Tensor]


def pieces(case: StepCase, p: float) -> dict[str, Piece]:
    """Return every piece by its name, with dropout ``p``, in training mode.

    ``fused(layers, *inputs)`` and ``plain(layers, keep, *inputs)`` must give the same.
    """
    torch.manual_seed(0)
    length, channels, rows = case.length, case.channels, case.batch * case.length
    t, gamma = _randn(case.batch, length, channels), _randn(5).softmax(0)
    outputs = [_randn(case.batch, length, channels) for _ in range(2)]
    features = [_randn(case.batch, length, c) for c in case.channels_raw[:_F]]
    projections = [_randn(c, channels) / math.sqrt(c) for c in case.channels_raw[:_F]]
    biases = [_randn(channels) for _ in features]
    wide = channels * len(features)
    step = {
        "glu": nn.Linear(channels, 2 * channels),
        "concat": nn.Linear(2 * channels, channels),
        "norm": nn.BatchNorm1d(3 * channels),
        "attention": nn.LayerNorm([length, channels]),
    }
    merge = {
        "merge": nn.Linear(2 * channels, channels),
        "norm": nn.BatchNorm1d(channels),
        "output": nn.LayerNorm([length, channels]),
    }

    def reshape(layers: nn.ModuleDict, *inputs: Tensor) -> Tensor:
        *rest, edges = inputs
        x, w, b = (rest[i * len(features) : (i + 1) * len(features)] for i in range(3))
        return fused.reshape_and_mix(x, w, b, layers["norm"], p, edges)

    def plain_reshape(layers: nn.ModuleDict, keep: Keep, *inputs: Tensor) -> Tensor:
        *rest, edges = inputs
        x, w, b = (rest[i * len(features) : (i + 1) * len(features)] for i in range(3))
        projected = [(a @ c + d).flatten(0, 1) for a, c, d in zip(x, w, b, strict=True)]
        h = layers["norm"](torch.cat(projected, 1)).relu() * keep((rows, wide))
        return torch.einsum("nf,rfc->nrc", edges, h.view(rows, len(features), channels))

    made: dict[str, tuple[dict[str, nn.Module], tuple[Tensor, ...], Callable, Callable]] = {
        "weighted_sum": (
            {},
            (_randn(3), t, *outputs),
            lambda layers, w, *terms: fused.weighted_sum(w, terms),
            lambda layers, keep, w, *terms: sum(a * x for a, x in zip(w, terms, strict=True)),
        ),
        "norm_relu_dropout": (
            {"norm": nn.BatchNorm1d(channels)},
            (_randn(rows, channels),),
            lambda layers, x: fused.norm_relu_dropout(x, layers["norm"], p),
            lambda layers, keep, x: layers["norm"](x).relu() * keep(tuple(x.shape)),
        ),
        "mix_features": (
            {},
            (_randn(_N, _F), _randn(rows, _F, channels)),
            lambda layers, w, h: fused.mix_features(w, h),
            lambda layers, keep, w, h: torch.einsum("nf,rfc->nrc", w, h),
        ),
        "reshape_and_mix": (
            {"norm": nn.BatchNorm1d(wide)},
            (*features, *projections, *biases, _randn(_N, len(features))),
            reshape,
            plain_reshape,
        ),
        "step_products": (
            {"glu": nn.Linear(channels, 2 * channels), "concat": nn.Linear(2 * channels, channels)},
            (_randn(rows, channels),),
            lambda layers, x: fused.step_products(x, layers["glu"], layers["concat"]),
            _plain_products,
        ),
        "mixture": (
            {"norm": nn.BatchNorm1d(3 * channels), "attention": nn.LayerNorm([length, channels])},
            (t, _randn(rows, 3 * channels), gamma),
            lambda layers, x, products, g: fused.mixture(
                x, products, g, layers["norm"], layers["attention"], p, p
            ),
            _plain_mixture,
        ),
        "relaxed_step": (
            step,
            (t, gamma),
            lambda layers, x, g: fused.relaxed_step(
                x,
                g,
                *(layers[name] for name in ("glu", "concat", "norm", "attention")),
                p,
                p,
            ),
            lambda layers, keep, x, g: _plain_mixture(
                layers, keep, x, _plain_products(layers, keep, x.flatten(0, 1)), g
            ),
        ),
        "cell_output": (
            merge,
            (t, *outputs),
            lambda layers, s, *z: fused.cell_output(
                s, z, layers["merge"], layers["norm"], layers["output"], p
            ),
            lambda layers, keep, s, *z: layers["output"](
                s
                + (
                    layers["norm"](layers["merge"](torch.cat(z, -1).flatten(0, 1))).relu()
                    * keep((rows, channels))
                ).view_as(s)
            ),
        ),
    }
    return {
        name: Piece(_varied(nn.ModuleDict(layers)), inputs, fast, plain)
        for name, (layers, inputs, fast, plain) in made.items()
    }


def masks(p: float, device: torch.device, dtype: torch.dtype) -> Keep:
    """Return what draws the masks that the fused form draws after the same seed, in float64."""

    def keep(shape: tuple[int, ...]) -> Tensor | float:
        mask, factor = keep_mask(torch.empty(shape, device=device, dtype=dtype), p, training=True)
        return 1.0 if mask is None else factor * mask.cpu().double()

    return keep


def _plain_products(layers: nn.ModuleDict, keep: Keep, t: Tensor) -> Tensor:
    return torch.cat((layers["glu"](t), layers["concat"](torch.cat((t, t), -1))), -1)


def _plain_mixture(
    layers: nn.ModuleDict, keep: Keep, t: Tensor, products: Tensor, gamma: Tensor
) -> Tensor:
    """Eq. 10 over the pool of Eq. 4 to 8, with x = y = t."""
    glu, concat, attention = (keep(tuple(t.shape)) for _ in range(3))
    value, gate, joint = layers["norm"](products).view(*t.shape[:-1], -1).chunk(3, -1)
    weights = (t @ t.transpose(1, 2) / math.sqrt(t.shape[-1])).softmax(-1)
    mixed: Tensor = (
        gamma[1] * 2 * t
        + gamma[2] * layers["attention"](weights @ t * attention)
        + gamma[3] * value * gate.sigmoid() * glu
        + gamma[4] * joint.relu() * concat
    )
    return mixed


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _varied(layers: nn.ModuleDict) -> nn.ModuleDict:
    """Give norms other weights than ones and zeros, which would hide a mistake."""
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.3)
            nn.init.normal_(module.bias)
    return layers.double().train()
