"""Hard negatives of matching: of some wrong pairs those that a network takes for the best.

Legend: n samples, R wrong ones that each row is paired with.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.features.pairs import ROWS, others, paired
from bmnas.features.samples import FeatureSamples
from bmnas.machine.distributed import broadcast
from bmnas.training.metrics import predict

#: Of the wrong ones that a row is paired with (Yu et al., ACM MM 2020).
KEPT = 5


def hardest(network: nn.Module, samples: FeatureSamples, count: int) -> Tensor:
    """Return the numbers (2, n, KEPT) of samples that go wrongly and well with each sample.

    The first row of each is paired with the second rows of ``count`` samples of other groups, then
    its second row with as many first ones; ``network`` ranks them, in evaluation mode, and is left
    in the mode that it was in. ``samples`` have groups for labels. Draws from torch's global
    generator.
    """
    device = next(network.parameters()).device
    training, found = network.training, []
    for way, rows in enumerate(samples.rows.values()):
        _, own, place = np.unique(rows.cpu().numpy(), return_index=True, return_inverse=True)
        each = torch.from_numpy(own).repeat_interleave(count)
        # Several ranks score a part each, of the same pairs.
        drawn = broadcast(others(samples.labels, each))
        first, second = (drawn, each) if way else (each, drawn)
        pairs = paired(samples, first, second, torch.zeros(len(each), 1))
        numbers = zip(samples.rows, (first, second), strict=True)
        pairs = dataclasses.replace(pairs, extras={name + ROWS: own for name, own in numbers})
        logits, _ = predict(network, network, pairs, device)
        # A row that was drawn again counts once, or the best one would be all that is kept.
        shown = list(samples.rows.values())[1 - way].cpu()[drawn].view(-1, count)
        scores = logits.view(-1, count).masked_fill(_repeated(shown), -torch.inf)
        best = scores.topk(min(KEPT, count)).indices
        found.append(drawn.view(-1, count).gather(1, best)[torch.from_numpy(place)])
    network.train(training)
    return torch.stack(found)


def _repeated(numbers: Tensor) -> Tensor:
    """Return which of the ``numbers`` (n, R) are in their row already (n, R)."""
    ordered, place = numbers.sort(dim=1, stable=True)
    again = ordered.diff(dim=1, prepend=ordered[:, :1] - 1) == 0
    return torch.zeros_like(again).scatter(1, place, again)
