"""How the features of a backbone are read: pooled to one length, or token by token.

Legend: B batch, L length, T tokens, C_raw channels of a raw feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from bmnas.features.reshape import Pool


class Reading(ABC):
    """What the feature cache keeps of a raw feature (B, C_raw, *rest)."""

    @property
    @abstractmethod
    def key(self) -> dict[str, int | str]:
        """What tells it from other readings, for the key of a cache's entry."""

    @abstractmethod
    def read(self, feature: Tensor) -> Tensor:
        """Return what is kept of ``feature``: (B, L or T, C_raw)."""

    def mask(self, kept: Tensor, content: Tensor | None) -> Tensor | None:
        """Return which positions (B, T) of what is kept count, None where all do by nature.

        ``content`` (B, T) is what the backbone says of the raw feature, see ``Backbone.mask``.
        """
        return None


@dataclass(frozen=True)
class Pooled(Reading):
    """Every feature pooled to ``length``, see ``Pool``."""

    length: int

    @property
    def key(self) -> dict[str, int | str]:
        """The length."""
        return {"reading": "pooled", "length": self.length}

    def read(self, feature: Tensor) -> Tensor:
        """Return the pooled feature (B, L, C_raw)."""
        pooled: Tensor = Pool(self.length)(feature)
        return pooled


@dataclass(frozen=True)
class Tokens(Reading):
    """Every position of a feature as a token: a word, a patch, a moment; a vector is one token."""

    @property
    def key(self) -> dict[str, int | str]:
        """Its name."""
        return {"reading": "tokens"}

    def read(self, feature: Tensor) -> Tensor:
        """Return the tokens (B, T, C_raw), T being the product of ``rest``."""
        return feature.flatten(2).transpose(1, 2) if feature.dim() > 2 else feature.unsqueeze(1)

    def mask(self, kept: Tensor, content: Tensor | None) -> Tensor:
        """Return which tokens count: those with ``content``, or all."""
        if content is None:
            return torch.ones(kept.shape[:2], dtype=torch.bool)
        return content.expand(kept.shape[:2])
