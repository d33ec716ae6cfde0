"""One-shot scores: genotypes judged with the weights of the supernet that contains them.

A supernet whose choices are all made computes one network, with weights that all networks share.
So hundreds of genotypes are judged in the time of one short training; the order that comes out is
a rough one (Bender et al., ICML 2018). As a mixture the supernet has only learned what all its
operations do together; ``SingleNetworks`` trains it on, one network at a time (Guo et al.,
ECCV 2020), after which the order is a better one (``docs/search-quality.md``).

Legend: B batch, L length, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import cycle
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.samples import FeatureSamples, iterate_batches
from bmnas.spaces.cells.genotype import Genotype, Step
from bmnas.spaces.cells.primitives import scaled_attention
from bmnas.spaces.cells.supernet import RelaxedCell, RelaxedStep, Supernet
from bmnas.training.heads import TaskHead

#: At most so many samples are looked at; three thousand rank av-digits no better.
SAMPLES = 1000
_BATCH = 500


class OneShot:
    """Losses of genotypes on some of ``samples``, with the weights of ``supernet``.

    BatchNorms take the statistics of each batch, since the running ones are those of the mixture;
    nothing is dropped: ``supernet`` is put into evaluation mode, and stays as it is otherwise. It
    knows no order of operands, as both inputs of its steps are one sum: genotypes that differ in
    nothing else have one loss.
    """

    @torch.no_grad()
    def __init__(
        self,
        supernet: Supernet,
        samples: FeatureSamples,
        head: TaskHead,
        device: torch.device,
        seed: int,
    ) -> None:
        self._supernet, self._head = supernet.eval(), head
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(samples), generator=generator)[:SAMPLES]
        #: Of each batch the reshaped features (B, L, C) by name, and the labels.
        self._batches = [
            (
                {
                    name: _reshaped(supernet, f, x)
                    for f, (name, x) in enumerate(zip(samples.names, batch.inputs, strict=True))
                },
                batch.labels,
            )
            for batch in iterate_batches(samples, _shares(chosen), device)
        ]

    @torch.no_grad()
    def loss(self, genotype: Genotype) -> float:
        """Return the mean loss of the network of ``genotype``."""
        losses = [
            self._head.loss(_logits(self._supernet, genotype, features), y) * len(y)
            for features, y in self._batches
        ]
        return float(sum(losses)) / sum(len(y) for _, y in self._batches)


class SingleNetworks(nn.Module):
    """A supernet of which each forward computes the next of ``genotypes``, round and round.

    BatchNorms take the statistics of the batch, as in ``OneShot``, which this trains for; the
    running ones of ``supernet`` stay. ``names`` are the features' in the order of ``forward``.
    """

    def __init__(
        self, supernet: Supernet, names: Sequence[str], genotypes: Sequence[Genotype]
    ) -> None:
        super().__init__()
        self.supernet = supernet
        self._names, self._next = names, cycle(genotypes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from all pooled features, (B, L, C_raw) each."""
        genotype = next(self._next)
        live = genotype.live_features()
        nodes = {
            name: _reshaped(self.supernet, number, x)
            for number, (name, x) in enumerate(zip(self._names, features, strict=True))
            if name in live
        }
        return _logits(self.supernet, genotype, nodes)


def _shares(chosen: Tensor) -> list[Tensor]:
    """Return ``chosen`` in about equal batches: a last one of few has poor statistics."""
    return list(chosen.tensor_split(-(-len(chosen) // _BATCH)))


def _reshaped(supernet: Supernet, number: int, x: Tensor) -> Tensor:
    """Return feature ``number``, pooled (B, L, C_raw), as it enters the Cells (B, L, C)."""
    weights, biases = supernet.projection_parameters()
    own = slice(number * supernet.channels, (number + 1) * supernet.channels)
    y = F.linear(x, weights[number].t(), biases[number])
    reshaped: Tensor = supernet.dropout(_normal(y, supernet.norm, own).relu())
    return reshaped


def _logits(supernet: Supernet, genotype: Genotype, features: Mapping[str, Tensor]) -> Tensor:
    """Return the logits (B, K) of the network of ``genotype`` from its reshaped ``features``."""
    nodes = dict(features)
    outputs = []
    for k, cell in enumerate(genotype.cells):
        read = cell.inputs if cell.reads_y() else cell.inputs[:1]
        s = _total([nodes[name] for name in read])
        outputs.append(_cell_output(cast(RelaxedCell, supernet.cells[k]), s, cell.steps))
        nodes[f"cell{k + 1}"] = outputs[-1]
    logits: Tensor = supernet.head(outputs)
    return logits


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
        merged = output.dropout(_normal(joined, output.merge.norm).relu())
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
        z: Tensor = step.attention_norm(step.attention_dropout(scaled_attention(t, t)))
        return z
    if op == "linear_glu":
        value, gate = _normal(step.glu(t), step.norm, slice(2 * channels)).chunk(2, dim=-1)
        gated: Tensor = step.dropout(value * gate.sigmoid())
        return gated
    if op == "concat_fc":
        joined = step.concat(torch.cat((t, t), dim=-1))
        rectified = _normal(joined, step.norm, slice(2 * channels, None)).relu()
        kept: Tensor = step.dropout(rectified)
        return kept
    raise ValueError(f"received operation {op!r}, which no supernet has")


def _normal(x: Tensor, norm: nn.BatchNorm1d, own: slice = slice(None)) -> Tensor:
    """Return ``x`` (B, L, C) normalised by its own statistics, and the part ``own`` of ``norm``."""
    rows = x.flatten(0, 1)
    weight, bias = norm.weight[own], norm.bias[own]
    y = F.batch_norm(rows, None, None, weight, bias, training=True, eps=norm.eps)
    return y.view(x.shape)


def _total(terms: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, terms)
