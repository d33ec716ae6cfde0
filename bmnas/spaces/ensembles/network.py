"""The mean of what several fusion networks say, each trained as if it were alone.

Legend: B batch, L length, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bmnas.spaces.fusion import Fusion
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Output, logits_of


class EnsembleFusion(Fusion):
    """The mean of the logits of ``networks``, which share features and nothing else.

    A mean of logits is the normalised product of what the networks say (Hansen and Salamon, 1990,
    for ensembles; Hinton, 2002, for products of experts). Its training minimises the mean of the
    networks' own losses and not that of their mean: else they would only correct each other.
    """

    networks: nn.ModuleList

    def __init__(self, networks: Sequence[Fusion]) -> None:
        features = dict.fromkeys(name for network in networks for name in network.features)
        super().__init__(features, networks[0].length)
        self.networks = nn.ModuleList(networks)
        self._given: list[int] = []

    @property
    def classifier(self) -> nn.Module:
        """The classifiers of all networks."""
        return nn.ModuleList(network.classifier for network in self._each)

    def timed_parts(self) -> Sequence[nn.Module]:
        """Return those of all networks."""
        return [part for network in self._each for part in network.timed_parts()]

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return the mean of the networks' own losses of what ``forward`` gave in training."""
        if isinstance(output, Tensor):
            return super().loss(head, output, labels)
        losses, rest = [], output[1:]
        for network, count in zip(self._each, self._given, strict=True):
            own, rest = rest[:count], rest[count:]
            losses.append(network.loss(head, own if count > 1 else own[0], labels))
        return torch.stack(losses).mean()

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each.

        In training they are followed by what each network gives, one after the other.
        """
        named = dict(zip(self.features, pooled, strict=True))
        outputs = [network([named[f] for f in network.features]) for network in self._each]
        mean = torch.stack([logits_of(output) for output in outputs]).mean(0)
        if not self.training:
            return mean
        each = [output if isinstance(output, tuple) else (output,) for output in outputs]
        self._given = [len(own) for own in each]
        return (mean, *(x for own in each for x in own))

    @property
    def _each(self) -> list[Fusion]:
        return [network for network in self.networks if isinstance(network, Fusion)]
