"""What each part of a network is worth: how far its score falls when the part is shuffled.

Permutation importance (Breiman, 2001; Fisher, Rudin and Dominici, 2019): every sample gets the part
of another one, so the part says nothing of it any more and all else stays as it is. A modality is
shuffled with all that is read of it, its features and the logits of its own head together; a
feature as the fusion network reads it.

Legend: n samples, L length, C_raw channels of a raw feature, K outputs of the network.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from bmnas.features.reshape import MASK
from bmnas.features.samples import Samples
from bmnas.pipeline.multimodal import FUSION, MultimodalNetwork, read_samples
from bmnas.report.metrics import Drop, ImportanceMetrics
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import logits_of

_REPEATS = 5
_BATCH = 256
_MOST = 2000  # samples: what is cached of them has to find room in memory


@torch.no_grad()
def permutation_importance(
    network: MultimodalNetwork, samples: Samples, head: TaskHead, device: torch.device
) -> ImportanceMetrics:
    """Return the drop of the score of ``network``, which lies on ``device``, for each part.

    ``samples`` are raw inputs, best of those that it has not learned from; of many, two thousand
    are drawn. The permutations follow from a fixed seed and are the same for every part. Leaves the
    network in evaluation mode.
    """
    network.eval()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(samples), generator=generator)[:_MOST]
    read, labels = read_samples(network, samples, chosen, device)
    weighing = network.weighing
    fused = weighing is None or FUSION in weighing.weights
    features = network.features if fused else ()

    def score(shuffled: Collection[str], order: Tensor) -> float:
        return head.score(_logits(network, read, shuffled, order, device), labels)

    whole = score((), torch.arange(len(chosen)))
    orders = [torch.randperm(len(chosen), generator=generator) for _ in range(_REPEATS)]

    def drop(*shuffled: str) -> Drop:
        drops = [whole - score(shuffled, order) for order in orders]
        return Drop(statistics.fmean(drops), statistics.stdev(drops))

    own = {m: [name for name in read if name.partition(".")[0] == m] for m in network.modalities}
    return ImportanceMetrics(
        whole,
        len(chosen),
        _REPEATS,
        {modality: drop(*names) for modality, names in own.items()},
        {name: drop(name, name + MASK) for name in features},
    )


def _logits(
    network: MultimodalNetwork,
    read: Mapping[str, Tensor],
    shuffled: Collection[str],
    order: Tensor,
    device: torch.device,
) -> Tensor:
    """Return the logits (n, K), sample i with what is ``shuffled`` of sample ``order[i]``."""
    logits = []
    for own in torch.arange(len(order)).split(_BATCH):
        taken = {
            name: x[order[own] if name in shuffled else own].to(device) for name, x in read.items()
        }
        alone = {name: taken.pop(name) for name in network.heads}
        output, members = network.fuse(taken, alone)
        weighing = network.weighing
        logits.append((logits_of(output) if weighing is None else weighing.of(members)).float())
    return torch.cat(logits).cpu()
