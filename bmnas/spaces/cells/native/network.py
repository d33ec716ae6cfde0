"""A training step of the paper's supernet with the kernels in place of what they can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bmnas.features.reshape import Projection
from bmnas.spaces.cells.native.build import kernels
from bmnas.spaces.cells.native.calls import Drop
from bmnas.spaces.cells.native.functions import Mixture, Norm, ReshapeAndMix, StepState
from bmnas.spaces.cells.operations import PAPER
from bmnas.spaces.cells.primitives import Attention, ConcatFC, LinearGLU
from bmnas.spaces.cells.supernet import (
    RelaxedCell,
    RelaxedStep,
    Supernet,
    inner_edges,
    shared_product,
    weighted_sum,
)


def speed_up(supernet: Supernet) -> Supernet:
    """Let ``supernet`` train with the kernels wherever they fit; returns it.

    They fit the paper's pool of operations, where a compiler could build them.
    """
    first = cast(RelaxedStep, cast(RelaxedCell, supernet.cells[0]).steps[0])
    if first.names == PAPER and kernels() is not None:
        supernet.fast_path = logits
    return supernet


def logits(supernet: Supernet, features: Sequence[Tensor]) -> Tensor | None:
    """Return the logits (B, K) in training on float32 features in memory, else None."""
    projections = [cast(Projection, layer) for layer in supernet.projections]
    norms = [layer.project.norm for layer in projections]
    if not supernet.training or not _fits(features) or norms[0].running_mean is None:
        return None
    alpha, beta, gamma = supernet.probabilities()
    count, shape = len(features), features[0].shape[:2]
    layers = zip(projections, features, strict=True)
    # Under autocast the products are rounded; everything else is float32 with or without.
    products = [layer.project.linear(x.flatten(0, 1)).float() for layer, x in layers]
    drop = Drop.of(projections[0].dropout.p)
    edges = alpha[:, :count]
    mixed = _apply(ReshapeAndMix, Norm.of(norms), drop, edges, *_affine(norms), *products)
    outputs: list[Tensor] = []
    for k, cell in enumerate(supernet.cells):
        s = mixed[k].view(*shape, -1)
        if outputs:
            s = s + weighted_sum(alpha[k, count : count + k], outputs)
        outputs.append(_cell(cast(RelaxedCell, cell), s, beta[k], gamma[k]))
    found: Tensor = supernet.head(outputs)
    return found


def _fits(features: Sequence[Tensor]) -> bool:
    if torch.compiler.is_compiling():
        return False
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in features)


def _cell(cell: RelaxedCell, s: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    results: list[Tensor] = []
    for m, step in enumerate(cell.steps):
        t = weighted_sum(inner_edges(beta[m], m), [s, *results])
        results.append(_mixture(cast(RelaxedStep, step), t, gamma[m]))
    z: Tensor = cell.output(s, results)
    return z


def _mixture(step: RelaxedStep, t: Tensor, gamma: Tensor) -> Tensor:
    attention = cast(Attention, step.operations["attention"])
    glu = cast(LinearGLU, step.operations["linear_glu"])
    concat = cast(ConcatFC, step.operations["concat_fc"])
    layers = [*glu.layers(), *concat.layers()]
    norms = [layer.norm for layer in layers]
    drops = Drop.of(glu.dropout.p), Drop.of(attention.dropout.p)
    state = StepState(Norm.of(norms), attention.norm.eps, *drops)
    affine = *_affine(norms), attention.norm.weight, attention.norm.bias
    return _apply(Mixture, state, t, shared_product(t, layers).float(), gamma, *affine)


def _affine(norms: Sequence[nn.BatchNorm1d]) -> tuple[Tensor, Tensor]:
    return torch.cat([norm.weight for norm in norms]), torch.cat([norm.bias for norm in norms])


def _apply(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    result: Tensor = function.apply(*inputs)
    return result
