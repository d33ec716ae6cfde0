"""Modalities that a sample lacks: their features are zeros, in whose place a learned vector stands.

Zeros are what the feature cache holds and what searches see. A network that is trained to the end
has a vector of its own for each feature in place of them; so that it knows how to do without a
modality, some samples are shown to it without one.

Legend: B batch, M modalities, L length, T tokens, C_raw channels of a raw feature.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn


def silent(x: Tensor, given: Tensor | None) -> Tensor:
    """Return ``x`` (B, …) with zeros for the samples that are not ``given`` (B,); None: all are."""
    if given is None:
        return x
    return torch.where(given.view(-1, *[1] * (x.dim() - 1)), x, torch.zeros_like(x))


def present(x: Tensor) -> Tensor:
    """Return which samples (B,) of ``x`` (B, …) are no zeros."""
    return (x != 0).flatten(1).any(1)


def repeated(x: Tensor, given: Tensor) -> Tensor:
    """Return raw inputs ``x`` (B, *shape) with ones that are ``given`` (B,) in place of others.

    So the statistics of a batch are those of what there is. Where none is given, nothing changes.
    """
    places = torch.arange(len(x), device=x.device)
    ordered = torch.argsort(~given, stable=True)  # those that are given first
    other = ordered[places % given.sum().clamp(min=1)]
    return x[torch.where(given | ~given.any(), places, other)]


def completed(members: Mapping[str, Tensor], optional: Collection[str]) -> dict[str, Tensor]:
    """Return the logits (B, K) of members, the mean of the others' for those that have none.

    Those are zeros, of samples that lack the modality; only ``optional`` members may lack some.
    """
    lacking = [name for name in members if name in optional]
    if not lacking:
        return dict(members)
    stacked = torch.stack([*members.values()])
    given = torch.stack(
        [
            present(x) if name in lacking else torch.ones_like(present(x))
            for name, x in members.items()
        ]
    ).to(stacked.dtype)
    mean = (stacked * given.unsqueeze(2)).sum(0) / given.sum(0).clamp(min=1).unsqueeze(1)
    return {
        name: torch.where(present(x).unsqueeze(1), x, mean) if name in lacking else x
        for name, x in members.items()
    }


class StandIns(nn.Module):
    """A learned vector (C_raw) for each feature of an optional modality, where that is lacking.

    ``channels`` are C_raw of ``features``, those of ``optional`` modalities among them. In training
    each optional modality of a sample is left out with probability ``rate``, but a sample keeps
    what it has where nothing would be left.
    """

    def __init__(
        self,
        features: Sequence[str],
        channels: Mapping[str, int],
        optional: Collection[str],
        rate: float,
    ) -> None:
        super().__init__()
        self.features, self.rate = tuple(features), rate
        self.modalities = tuple(dict.fromkeys(map(_modality, self.features)))
        self.optional = [name in optional for name in self.modalities]
        self.vectors = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(torch.zeros(channels[name]))
                for name in self.features
                if _modality(name) in optional
            }
        )

    def forward(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        """Return the ``features`` (B, L or T, C_raw), of what is lacking its vectors."""
        given = self.given(pooled)
        filled = []
        for name, x in zip(self.features, pooled, strict=True):
            place = self.modalities.index(_modality(name))
            if self.optional[place]:
                vector = self.vectors[name.replace(".", "/")].to(x.dtype)
                x = torch.where(given[:, place, None, None], x, vector)
            filled.append(x)
        return filled

    def given(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return which modalities (B, M) each sample has, in training fewer than it has."""
        columns = []
        for name, optional in zip(self.modalities, self.optional, strict=True):
            own = [x for n, x in zip(self.features, pooled, strict=True) if _modality(n) == name]
            has = present(torch.cat([x.flatten(1) for x in own], 1))
            columns.append(has if optional else torch.ones_like(has))
        given = torch.stack(columns, 1)
        if not self.training or not self.rate:
            return given
        may_lack = torch.tensor(self.optional, device=given.device)
        dropped = torch.rand(given.shape, device=given.device) < self.rate
        kept = given & ~(dropped & may_lack)
        return torch.where(kept.any(1, keepdim=True), kept, given)


def _modality(feature: str) -> str:
    return feature.partition(".")[0]
