"""How a network does on samples: loss, score, logits (spec section 7).

Legend: B batch, n samples, N networks, K outputs of a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bmnas.features.samples import Samples, iterate_batches
from bmnas.machine.distributed import broadcast_buffers, gather_rows, rank, world_size
from bmnas.training.heads import TaskHead

#: What a network returns: logits (B, K); in training perhaps with more after them, in a tuple, that
#: only a loss of its own reads.
Output = Tensor | tuple[Tensor, ...]

#: From a batch's inputs, or what else its ``arguments`` are, to what a network returns.
Forward = Callable[..., Output]


def logits_of(output: Output) -> Tensor:
    """Return the logits (B, K) in what a network returned."""
    return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and score of a network over a set of samples, with its logits (n, K) and labels."""

    loss: float
    score: float
    logits: Tensor
    labels: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, head: TaskHead) -> Evaluation:
        """Return that of logits (n, K) on the CPU."""
        return cls(float(head.loss(logits, labels)), head.score(logits, labels), logits, labels)


def evaluate(
    network: nn.Module, forward: Forward, samples: Samples, head: TaskHead, device: torch.device
) -> Evaluation:
    """Return the loss and score of ``forward`` over all ``samples``, in evaluation mode.

    ``network`` is what ``forward`` runs; it is put in evaluation mode and left so. Several ranks
    take a stretch of the samples each, and every one of them returns the whole.
    """
    return Evaluation.of(*predict(network, forward, samples, device), head)


@torch.no_grad()
def predict(
    network: nn.Module, forward: Forward, samples: Samples, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the logits that ``forward`` gives for all ``samples``, and labels, on the CPU."""
    broadcast_buffers(network)
    network.eval()
    logits, labels = [], []
    split = len(samples) >= world_size()  # else somebody would have none
    chosen = torch.arange(len(samples))
    own = chosen.tensor_split(world_size())[rank()] if split else chosen
    for batch in iterate_batches(samples, own.split(samples.at_once), device):
        logits.append(logits_of(forward(*batch.arguments)).float())
        labels.append(batch.labels)
    # The device synchronises here, once for all samples.
    all_logits, all_labels = torch.cat(logits).cpu(), torch.cat(labels).cpu()
    if split:
        all_logits, all_labels = gather_rows(all_logits), gather_rows(all_labels)
    return all_logits, all_labels
