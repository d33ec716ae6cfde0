"""Candidates of MFAS as one network: their layers stacked, trained on the same batches.

A candidate is so small that calling its operations takes longer than computing them; N of them
stacked take little longer than one.

Legend: B batch, L length, C_raw channels of a raw feature, N networks, D layers, M modalities,
S inner size, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bmnas.features.layers import Dropout
from bmnas.spaces.mfas.network import FusionLayer, MFASNetwork, pooled_globally, shares
from bmnas.training.metrics import Output


class StackedNetworks(nn.Module):
    """N networks of one depth without heads, computed together; their weights are copied.

    What a layer makes of a feature is one product for all layers that read the feature. Then the
    layers follow each other, all networks at once. ``features`` are those that any network reads.
    """

    slots: Tensor
    relu: Tensor

    def __init__(self, networks: Sequence[MFASNetwork], features: Sequence[str]) -> None:
        super().__init__()
        inputs = networks[0].inputs
        self.count, self.depth, self.modalities = len(networks), len(inputs), len(inputs[0])
        layers = [[cast(FusionLayer, layer) for layer in network.layers] for network in networks]
        # Where a feature is read: (layer, network, modality), feature by feature.
        readers = [
            [
                (d, n, m)
                for d in range(self.depth)
                for n, network in enumerate(networks)
                for m, name in enumerate(network.inputs[d])
                if name == feature
            ]
            for feature in features
        ]
        self.features = tuple(f for f, places in zip(features, readers, strict=True) if places)
        places = [place for group in readers for place in group]
        # From the order of the products to that of the places.
        order = sorted(range(len(places)), key=places.__getitem__)
        self.register_buffer("slots", torch.tensor(order))
        self.weights = nn.ParameterList(
            torch.cat([_part(layers[n][d], m) for d, n, m in group]) for group in readers if group
        )
        self._stack([list(row) for row in zip(*layers, strict=True)])
        decide = [cast(nn.Linear, network.classifiers[0]) for network in networks]
        self.output = nn.Parameter(torch.stack([x.weight.detach().T for x in decide]))
        self.output_bias = nn.Parameter(torch.stack([x.bias.detach() for x in decide]))
        self.dropout = Dropout(layers[0][0].dropout.p)

    @torch.no_grad()
    def _stack(self, rows: Sequence[Sequence[FusionLayer]]) -> None:
        """Copy all but the weights of features from ``rows``, each a layer of all networks."""
        self.biases = nn.Parameter(_stacked([[x.linear.bias for x in row] for row in rows]))
        self.hidden = nn.ParameterList(
            torch.stack([x.linear.weight[:, sum(x.widths) :].T for x in row]) for row in rows[1:]
        )
        relu = [[x.activation == "relu" for x in row] for row in rows]
        self.register_buffer("relu", torch.tensor(relu)[:, :, None])
        scalars = [[x.scalars for x in row if x.scalars is not None] for row in rows]
        self.scalars = nn.Parameter(_stacked(scalars)) if scalars[0] else None

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, N, K) of all networks from the pooled ``features``, (B, L, C_raw) each.

        In training their mean (B, K) comes first, all that a loop has to keep of a batch.
        """
        products = [
            pooled_globally(feature) @ weight.T
            for feature, weight in zip(pooled, self.weights, strict=True)
        ]
        batch, size = len(products[0]), self.biases.shape[-1]
        read = torch.cat(products, dim=1).view(batch, -1, size)[:, self.slots]
        read = read.view(batch, self.depth, self.count, self.modalities, size)
        if self.scalars is not None:
            read = read * shares(self.scalars)[..., None]
        entering = read.sum(3) + self.biases
        h = self._activated(entering[:, 0], 0)
        for depth, hidden in enumerate(self.hidden, start=1):
            before = torch.einsum("bni,nio->bno", h, hidden)
            h = self._activated(entering[:, depth] + before, depth)
        logits = torch.einsum("bni,nik->bnk", h, self.output) + self.output_bias
        return (logits.mean(1), logits) if self.training else logits

    def _activated(self, x: Tensor, depth: int) -> Tensor:
        h: Tensor = self.dropout(torch.where(self.relu[depth], x.relu(), x.sigmoid()))
        return h


def _part(layer: FusionLayer, modality: int) -> Tensor:
    """Return the weights (S, C_raw) that ``layer`` has for the feature of a modality."""
    start = sum(layer.widths[:modality])
    return layer.linear.weight.detach()[:, start : start + layer.widths[modality]]


def _stacked(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return tensors of one shape as one (D, N, *shape)."""
    return torch.stack([torch.stack(list(row)) for row in rows])
