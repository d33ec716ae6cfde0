"""The network of MFAS: fusion layers in a chain, a head for them and one for each modality.

Legend: B batch, L length, C_raw channels of a raw feature, D inner size, M modalities, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.mfas.genotype import MFASGenotype
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Output

_SCALAR_DEVIATION = 0.1


def shares(scalars: Tensor) -> Tensor:
    """Return the weights (..., M) of M modalities from ``scalars`` (..., M - 1): softmax([a; 0]).

    Of two modalities they are sigma(a) and 1 - sigma(a).
    """
    last = torch.zeros_like(scalars[..., :1])
    return torch.cat((scalars, last), dim=-1).softmax(-1)


class FusionLayer(nn.Module):
    """h = act(W [s_1 x_1; …; s_M x_M; h_before] + b), dropout; s are learned scalars, or 1."""

    def __init__(
        self,
        widths: Sequence[int],
        inner_size: int,
        activation: str,
        dropout: float,
        *,
        first: bool,
        scalars: bool,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.activation = activation
        self.linear = nn.Linear(sum(widths) + (0 if first else inner_size), inner_size)
        self.dropout = Dropout(dropout)
        self.scalars: nn.Parameter | None = None
        if scalars:
            self.scalars = nn.Parameter(_SCALAR_DEVIATION * torch.randn(len(widths) - 1))

    def forward(self, vectors: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
        """Return h (B, D) of M ``vectors`` (B, C_raw), and of the layer ``before`` if any."""
        if self.scalars is not None:
            vectors = [s * x for s, x in zip(shares(self.scalars), vectors, strict=True)]
        h = self.linear(torch.cat((*vectors, *before), dim=1))
        z: Tensor = self.dropout(h.relu() if self.activation == "relu" else h.sigmoid())
        return z


class MFASNetwork(Fusion):
    """The network of ``genotype``: logits of the fusion layers plus those of each modality.

    x_i are features pooled globally: the mean over the L positions of the feature cache, each of
    which is the maximum of its window, where the original takes the mean of the whole map. A
    modality's own head is linear on its last feature, so pooled; in the original it is that of
    its unimodal network. In training ``forward`` also gives the logits of each head. Without
    ``heads``, as a candidate is in the search, only the fusion layers decide.
    """

    CLASSIFIER = "classifiers"

    def __init__(
        self,
        genotype: MFASGenotype,
        channels_raw: Mapping[str, int],
        *,
        classes: int,
        dropout: float,
        heads: bool = True,
    ) -> None:
        decisive = genotype.last_features() if heads else ()
        read = {*decisive, *(name for layer in genotype.layers for name in layer.inputs)}
        super().__init__((name for name in genotype.features if name in read), genotype.length)
        self.heads = decisive
        self.inputs = [layer.inputs for layer in genotype.layers]
        self.layers = nn.ModuleList(
            FusionLayer(
                [channels_raw[name] for name in layer.inputs],
                genotype.inner_size,
                layer.activation,
                dropout,
                first=number == 0,
                scalars=genotype.scalars,
            )
            for number, layer in enumerate(genotype.layers)
        )
        # That of the fusion layers first, then those of the modalities.
        widths = (genotype.inner_size, *(channels_raw[name] for name in self.heads))
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for width in widths)

    def timed_parts(self) -> Sequence[nn.Module]:
        """Return fusion layers and classifiers."""
        return (*self.layers, *self.classifiers)

    @property
    def has_own_loss(self) -> bool:
        """Whether it has heads, whose losses count."""
        return bool(self.heads)

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return the sum of the losses of the heads, which follow the summed logits."""
        if isinstance(output, Tensor):
            return super().loss(head, output, labels)
        return head.summed_loss(output[1:], labels)

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each.

        With heads they are summed, and followed in training by those of each head.
        """
        vectors = {name: x.mean(1) for name, x in zip(self.features, pooled, strict=True)}
        h: list[Tensor] = []
        for layer, names in zip(self.layers, self.inputs, strict=True):
            h = [layer([vectors[name] for name in names], h)]
        decided = [*h, *(vectors[name] for name in self.heads)]
        logits = [classify(x) for classify, x in zip(self.classifiers, decided, strict=True)]
        total = torch.stack(logits).sum(0)
        if not (self.training and self.heads):
            return total
        return (total, *logits)
