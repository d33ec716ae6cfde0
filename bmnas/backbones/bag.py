"""A linear model of which words a text has, beside the network that reads them in order.

Legend: B batch, T positions, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST = 1e-6


class BagOfWords(nn.Module):
    """How rare the words of a row are (inverse document frequency), then a matrix.

    A word counts as often as it occurs, each time ``idf``, the more the fewer train rows have it;
    then all are divided by the root of the sum of their squares. TF-IDF would add up a word's
    occurrences before it squares; that needs a table of all words for each row.
    """

    idf: Tensor

    def __init__(self, entries: int, classes: int) -> None:
        super().__init__()
        self.weights = nn.Embedding(entries, classes)
        self.register_buffer("idf", torch.zeros(entries))

    @torch.no_grad()
    def count(self, ids: Tensor, content: Tensor) -> None:
        """Set ``idf`` from the train rows ``ids`` (n, T), where ``content`` (n, T) says word."""
        rows = torch.arange(len(ids)).unsqueeze(1).expand_as(ids)[content]
        pairs = torch.unique(torch.stack([rows, ids[content]]), dim=1)
        having = torch.bincount(pairs[1], minlength=len(self.idf))
        self.idf.copy_(((1 + len(ids)) / (1 + having)).log() + 1)
        self.idf[having == 0] = 0.0  # a word that train does not have says nothing

    def values(self, ids: Tensor, content: Tensor) -> Tensor:
        """Return what each word of ``ids`` (B, T) counts; ``content`` (B, T) is 0 at padding."""
        values = self.idf[ids] * content
        return values / values.square().sum(1, keepdim=True).sqrt().clamp(min=_SMALLEST)

    def forward(self, ids: Tensor, content: Tensor) -> Tensor:
        """Return logits (B, K), without a bias."""
        logits: Tensor = (self.weights(ids) * self.values(ids, content).unsqueeze(-1)).sum(1)
        return logits
