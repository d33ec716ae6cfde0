"""The discretised network of a genotype.

Legend: B batch, L length, C channels, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bmnas.features.reshape import Projection
from bmnas.spaces.cells.genotype import Cell, Genotype
from bmnas.spaces.cells.operations import OPERATIONS
from bmnas.spaces.cells.primitives import CellOutput, Head
from bmnas.spaces.fusion import Fusion


class FusionCell(nn.Module):
    """A Cell with its chosen steps; ``zero`` steps and what only they need are not built."""

    def __init__(self, cell: Cell, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        live = cell.live_steps()
        self.step_inputs = [(m, cell.steps[m].inputs) for m in live]
        self.operations = nn.ModuleList(
            OPERATIONS[cell.steps[m].op].build(channels, length, dropout) for m in live
        )
        merge = len(cell.steps) > 1 and len(live) > 0
        self.output = CellOutput(len(live), channels, length, dropout, merge=merge)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the output (B, L, C); ``y`` is None where no step that is kept reads it."""
        nodes = {"x": x} if y is None else {"x": x, "y": y}
        outputs = []
        for (m, names), operation in zip(self.step_inputs, self.operations, strict=True):
            # A name that is not there is a zero step: its output is zero (Eq. 4).
            first, second = (nodes[n] if n in nodes else torch.zeros_like(x) for n in names)
            nodes[f"step{m + 1}"] = operation(first, second)
            outputs.append(nodes[f"step{m + 1}"])
        z: Tensor = self.output(x, outputs)
        return z


class FusionNetwork(Fusion):
    """The fusion network of a genotype: reshape layers, Cells, head.

    ``channels_raw`` maps feature names to C_raw. ``features`` are the names it reads, in order;
    features that no Cell reads have no reshape layer.
    """

    def __init__(
        self, genotype: Genotype, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> None:
        channels, length = genotype.channels, genotype.length
        super().__init__(genotype.live_features(), length)
        self.projections = nn.ModuleList(
            Projection(channels_raw[name], channels, dropout) for name in self.features
        )
        self.cell_inputs = [
            (c.inputs[0], c.inputs[1] if c.reads_y() else None) for c in genotype.cells
        ]
        self.cells = nn.ModuleList(
            FusionCell(cell, channels, length, dropout) for cell in genotype.cells
        )
        self.head = Head(len(genotype.cells), channels, length, classes)

    @property
    def classifier(self) -> nn.Module:
        """The linear layer of the head."""
        return self.head.classifier

    def timed_parts(self) -> Sequence[nn.Module]:
        """Return projections, operations, ends of Cells, and the head."""
        cells = [cast(FusionCell, cell) for cell in self.cells]
        inside = [part for cell in cells for part in (*cell.operations, cell.output)]
        return (*self.projections, *inside, self.head)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) from the pooled ``features``, (B, L, C_raw) each, in their order."""
        nodes: dict[str, Tensor] = {}
        for name, project, feature in zip(self.features, self.projections, pooled, strict=True):
            nodes[name] = project(feature)
        outputs = []
        for k, (cell, (x, y)) in enumerate(zip(self.cells, self.cell_inputs, strict=True)):
            nodes[f"cell{k + 1}"] = cell(nodes[x], None if y is None else nodes[y])
            outputs.append(nodes[f"cell{k + 1}"])
        logits: Tensor = self.head(outputs)
        return logits
