"""One-shot scores: genotypes judged with the weights of the supernet that contains them.

A supernet with one-hot weights computes one network, with weights that all networks share. So
hundreds of genotypes are judged in the time of one short training; the order that comes out is a
rough one (Bender et al., ICML 2018). As a mixture the supernet has only learned what all its
operations do together; ``SinglePath`` trains it on, one network at a time (Guo et al.,
ECCV 2020), after which the order is a better one (``docs/search-quality.md``).

Legend: B batch, L length, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor, nn

from bmnas.features.samples import FeatureSamples, iterate_batches
from bmnas.spaces.cells.derive import one_hot
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.supernet import Supernet
from bmnas.training.heads import TaskHead

#: At most so many samples are looked at; three thousand rank av-digits no better.
SAMPLES = 1000
_BATCH = 500


class OneShot:
    """Losses of genotypes on some of ``samples``, with the weights of ``supernet``.

    Nothing is dropped, and BatchNorms take the statistics of each batch: ``supernet`` is put into
    evaluation mode and loses its running statistics. Genotypes that differ in nothing but the
    order of operands have one loss.
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
        supernet.use_batch_statistics()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(samples), generator=generator)[:SAMPLES]
        #: Of each batch the reshaped features (B, L, C), and the labels.
        self._batches = [
            (supernet.reshape(batch.inputs), batch.labels)
            for batch in iterate_batches(samples, _equal_batches(chosen), device)
        ]

    @torch.no_grad()
    def loss(self, genotype: Genotype) -> float:
        """Return the mean loss of the network of ``genotype``."""
        weights = one_hot(genotype)
        losses = [
            self._head.loss(self._supernet.fuse(nodes, weights), labels) * len(labels)
            for nodes, labels in self._batches
        ]
        return float(sum(losses)) / sum(len(labels) for _, labels in self._batches)


class SinglePath(nn.Module):
    """A supernet of which each forward computes the next of ``genotypes``, round and round.

    It trains the supernet for ``OneShot``, and has it lose its running statistics likewise.
    """

    #: Each step has gradients of other weights: for ``data_parallel``.
    single_path = True

    def __init__(self, supernet: Supernet, genotypes: Sequence[Genotype]) -> None:
        super().__init__()
        supernet.use_batch_statistics()
        self.supernet = supernet
        self._next = cycle(one_hot(genotype) for genotype in genotypes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from all pooled features, (B, L, C_raw) each."""
        logits: Tensor = self.supernet(features, weights=next(self._next))
        return logits


def _equal_batches(chosen: Tensor) -> list[Tensor]:
    """Return ``chosen`` in about equal batches: a last one of few has poor statistics."""
    return list(chosen.tensor_split(-(-len(chosen) // _BATCH)))
