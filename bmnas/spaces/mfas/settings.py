"""Settings of strategy ``mfas``: section ``[mfas]`` of a preset. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from bmnas.machine.schema import Range
from bmnas.spaces.mfas.genotype import DEEPEST
from bmnas.training.settings import BatchSize, Count, Dropout, Rate, Size


@dataclass(frozen=True)
class MFASConfig:
    """The search of MFAS; the defaults are those of the authors' program.

    ``sweeps`` times ``levels`` steps; each trains ``kept`` candidates (K) for ``epochs`` epochs,
    the first one all architectures of one layer. Candidates have fusion layers of ``inner_size``
    units, the final network of ``final_inner_size``. ``scalars`` weighs the modalities of a layer
    by learned scalars. Up to ``together`` candidates are trained as one network, which takes less
    time than one by one, as the authors do.
    """

    sweeps: Count = 3
    levels: Annotated[int, Range(1, DEEPEST)] = 4
    kept: Count = 15
    epochs: Count = 3
    batch_size: BatchSize = 20
    dropout: Dropout = 0.5
    max_lr: Rate = 1e-3
    min_lr: Rate = 1e-6
    weight_decay: Rate = 1e-4
    inner_size: Size = 16
    final_inner_size: Size = 256
    scalars: bool = False
    together: Count = 32
