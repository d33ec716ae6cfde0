"""Settings of strategies ``bmnas`` and ``random``: section ``[search]``; standard library only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from bmnas.machine.schema import Range
from bmnas.training.settings import BatchSize, Count, Dropout, Rate, ShortTraining, Size

#: With rivals: so many times networks are compared, each time the better third is trained longer.
RUNGS, LONGER = 3, 3


@dataclass(frozen=True)
class SearchConfig:
    """The supernet's shape and Algorithm 1's settings (spec section 6; BM-NAS, Table 8).

    ``candidates`` is the budget of strategies that train candidates, ``rerank`` how many genotypes
    Algorithm 1's own result is compared with in the end (0: the paper's method); each is trained
    for ``candidate_epochs``, and before them the supernet, one path at a time. With ``rivals``, for
    Cells alone, hand-made fusions and known modules are among them, and trainings are of ``RUNGS``
    lengths, see ``first_rung``. The best ``ensemble`` of what is compared are averaged, unless
    they read tokens. ``cache_dtype`` is the type of the feature cache,
    ``precision`` that of the matrix products of Algorithm 1. In the first ``warmup_steps``, at most
    a quarter, of a training that has a cosine of its own, of a candidate or of the supernet of
    MMnas, the rate rises.
    """

    cells: Count = 2
    steps: Count = 2
    channels: Size = 64
    length: Size = 8
    epochs: Count = 20
    batch_size: BatchSize = 96
    dropout: Dropout = 0.1
    max_lr: Rate = 1e-3
    min_lr: Rate = 1e-6
    weight_decay: Rate = 1e-4
    arch_lr: Rate = 3e-4
    arch_weight_decay: Rate = 1e-3
    candidates: Count = 16
    candidate_epochs: Count = 3
    rerank: Annotated[int, Range(0)] = 0
    rivals: bool = False
    ensemble: Annotated[int, Range(1, 16)] = 1
    warmup_steps: Annotated[int, Range(0)] = 0
    cache_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def first_rung(self) -> ShortTraining:
        """How candidates are trained that come first; with ``rivals`` longer trainings follow.

        These are ``LONGER`` times as long each, the second ones ``candidate_epochs``.
        """
        epochs = round(self.candidate_epochs / LONGER) if self.rivals else self.candidate_epochs
        return dataclasses.replace(self.short_training, epochs=max(1, epochs))

    @property
    def short_training(self) -> ShortTraining:
        """How a candidate is trained by these settings."""
        return ShortTraining(
            self.candidate_epochs,
            self.batch_size,
            self.max_lr,
            self.min_lr,
            self.weight_decay,
            dropout=self.dropout,
            warmup_steps=self.warmup_steps,
        )
