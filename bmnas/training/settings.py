"""Settings of trainings, and the bounds that settings share; standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from bmnas.machine.schema import Range

Count = Annotated[int, Range(1)]
#: BatchNorm has no statistics of one sample.
BatchSize = Annotated[int, Range(2)]
#: Channels, length, units: as large as a genotype's file may say.
Size = Annotated[int, Range(1, 65536)]
#: A learning rate or weight decay.
Rate = Annotated[float, Range(0)]
Dropout = Annotated[float, Range(0, below=1)]
Probability = Annotated[float, Range(0, 1)]
Threshold = Annotated[float, Range(above=0, below=1)]


@dataclass(frozen=True)
class UnimodalConfig:
    """How a backbone without weights is trained: AdamW, one cosine cycle, fixed epochs."""

    epochs: Count = 8
    batch_size: BatchSize = 96
    max_lr: Rate = 2e-3
    min_lr: Rate = 1e-6
    weight_decay: Rate = 1e-2


@dataclass(frozen=True)
class TrainConfig:
    """The evaluation stage: fixed epochs on train + validation (spec section 7).

    ``backbone_lr`` is the peak learning rate of the backbones, ``max_lr`` of everything else.
    ``threshold`` turns probabilities into labels in multilabel tasks. ``freeze_backbones`` trains
    on the feature cache and leaves the backbones as they are. ``unimodal_logits`` adds the
    logits of the unimodal networks to those of what a search found.
    """

    epochs: Count = 20
    batch_size: BatchSize = 96
    dropout: Dropout = 0.1
    max_lr: Rate = 1e-3
    backbone_lr: Rate = 1e-4
    min_lr: Rate = 1e-6
    weight_decay: Rate = 1e-4
    threshold: Threshold = 0.5
    freeze_backbones: bool = False
    unimodal_logits: bool = False
