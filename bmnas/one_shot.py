"""One-shot scores: genotypes judged with the weights of the supernet that contains them.

A supernet whose choices are all made computes one network, with weights that all networks share.
Nothing is trained, so that hundreds of genotypes are judged in the time of one short training; the
order that comes out is a rough one (Bender et al., ICML 2018; ``docs/search-quality.md``).

Legend: B batch, L length, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.genotype import Genotype, Step
from bmnas.metrics import Objective
from bmnas.primitives import scaled_attention
from bmnas.samples import FeatureSamples, fed
from bmnas.supernet import RelaxedCell, RelaxedStep, Supernet

#: At most so many samples are looked at; three thousand rank av-digits no better.
SAMPLES = 1000
_BATCH = 500


class OneShot:
    """Losses of genotypes on some of ``samples``, with the weights of ``supernet``.

    BatchNorms take the statistics of each batch, since the running ones are those of the mixture;
    nothing is dropped. ``supernet`` stays as it is. It knows no order of operands, as both inputs
    of its steps are one sum: genotypes that differ in nothing else have one loss.
    """

    @torch.no_grad()
    def __init__(
        self,
        supernet: Supernet,
        samples: FeatureSamples,
        objective: Objective,
        device: torch.device,
        seed: int,
    ) -> None:
        self._supernet, self._objective = supernet, objective
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(samples), generator=generator)[:SAMPLES]
        #: Of each batch the reshaped features (B, L, C) by name, and the labels.
        self._batches = [
            (dict(zip(samples.names, self._reshaped(features), strict=True)), labels)
            for features, labels in fed(samples, _shares(chosen), device)
        ]

    @torch.no_grad()
    def loss(self, genotype: Genotype) -> float:
        """Return the mean loss of the network of ``genotype``."""
        losses = [
            self._objective.loss(self._logits(genotype, features), labels) * len(labels)
            for features, labels in self._batches
        ]
        return float(sum(losses)) / sum(len(labels) for _, labels in self._batches)

    def _reshaped(self, features: Sequence[Tensor]) -> list[Tensor]:
        norm, channels = self._supernet.norm, self._supernet.channels
        layers = zip(*self._supernet.projection_parameters(), strict=True)
        found = []
        for number, (x, (weight, bias)) in enumerate(zip(features, layers, strict=True)):
            own = slice(number * channels, (number + 1) * channels)
            found.append(_normal(F.linear(x, weight.t(), bias), norm, own).relu())
        return found

    def _logits(self, genotype: Genotype, features: dict[str, Tensor]) -> Tensor:
        nodes = dict(features)
        outputs = []
        for k, cell in enumerate(genotype.cells):
            read = cell.inputs if cell.reads_y() else cell.inputs[:1]
            s = _total([nodes[name] for name in read])
            own = cast(RelaxedCell, self._supernet.cells[k])
            outputs.append(_cell_output(own, s, cell.steps))
            nodes[f"cell{k + 1}"] = outputs[-1]
        logits: Tensor = self._supernet.head(outputs)
        return logits


def _shares(chosen: Tensor) -> list[Tensor]:
    """Return ``chosen`` in about equal batches: a last one of few has poor statistics."""
    return list(chosen.tensor_split(-(-len(chosen) // _BATCH)))


def _cell_output(cell: RelaxedCell, s: Tensor, steps: Sequence[Step]) -> Tensor:
    outputs: list[Tensor] = []
    for module, step in zip(cell.steps, steps, strict=True):
        earlier = {f"step{m + 1}": output for m, output in enumerate(outputs)}
        t = _total([earlier.get(name, s) for name in step.inputs])
        outputs.append(_mixed(cast(RelaxedStep, module), step.op, t))
    output = cell.output
    if output.merge is None:
        merged = outputs[0]
    else:
        joined = output.merge.linear(torch.cat(outputs, dim=-1))
        merged = _normal(joined, output.merge.norm).relu()
    z: Tensor = output.norm(s + merged)
    return z


def _mixed(step: RelaxedStep, op: str, t: Tensor) -> Tensor:
    """Return what the mixture of ``step`` gives when all its weight is on ``op``."""
    channels = t.shape[-1]
    if op == "zero":
        return torch.zeros_like(t)
    if op == "sum":
        return t + t
    if op == "attention":
        z: Tensor = step.attention_norm(scaled_attention(t, t))
        return z
    if op == "linear_glu":
        value, gate = _normal(step.glu(t), step.norm, slice(2 * channels)).chunk(2, dim=-1)
        return value * gate.sigmoid()
    if op == "concat_fc":
        joined = step.concat(torch.cat((t, t), dim=-1))
        return _normal(joined, step.norm, slice(2 * channels, None)).relu()
    raise ValueError(f"received operation {op!r}, which no supernet has")


def _normal(x: Tensor, norm: nn.BatchNorm1d, own: slice = slice(None)) -> Tensor:
    """Return ``x`` (B, L, C) normalised by its own statistics, and the part ``own`` of ``norm``."""
    rows = x.flatten(0, 1)
    weight, bias = norm.weight[own], norm.bias[own]
    y = F.batch_norm(rows, None, None, weight, bias, training=True, eps=norm.eps)
    return y.view(x.shape)


def _total(terms: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, terms)
