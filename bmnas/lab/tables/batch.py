"""Many fusion networks of one structure as one network with a leading candidate axis.

Legend: G candidates, B batch, L length, C channels, C_raw channels of a raw feature, N Cells,
K classes. Genotypes have one structure when they differ in nothing but the features that their
Cells read: the same steps, and features shared between Cells in the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bmnas.features.reshape import Projection
from bmnas.lab.tables.stacked import (
    STACKED,
    SharedProjection,
    StackedFC,
    StackedLayerNorm,
    StackedLinear,
)
from bmnas.spaces.cells.genotype import Cell, Genotype
from bmnas.spaces.cells.network import FusionCell, FusionNetwork
from bmnas.spaces.cells.primitives import CellOutput


def structure(genotype: Genotype) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """Return a genotype's Cells with numbered slots for features, and the feature of each slot.

    Slots are named ``0``, ``1``, … in the order in which Cells read them; a feature that no step
    reads has the name of no slot, ``-``.
    """
    slots: dict[str, str] = {}
    cells = []
    for cell in genotype.cells:
        read = cell.inputs if cell.reads_y() else cell.inputs[:1]
        for name in read:
            if name in genotype.features:
                slots.setdefault(name, str(len(slots)))
        x, *y = (slots.get(name, name) for name in read)
        cells.append(Cell((x, y[0] if y else "-"), cell.steps))
    return tuple(cells), tuple(slots)


class BatchedNetwork(nn.Module):
    """The fusion networks of G genotypes of one structure, as one network.

    It takes over the weights of ``networks``, which are those of ``genotypes``, and computes for
    every candidate what its own network would. ``features`` are the names that it reads, in order.
    """

    def __init__(self, genotypes: Sequence[Genotype], networks: Sequence[FusionNetwork]) -> None:
        super().__init__()
        forms = [structure(genotype) for genotype in genotypes]
        cells, slots = forms[0][0], [form[1] for form in forms]
        if any(form[0] != cells for form in forms):
            raise ValueError("received genotypes of several structures, expected one")
        used = {name for names in slots for name in names}
        self.features = tuple(name for name in genotypes[0].features if name in used)
        #: Who reads a feature: (candidate, slot), in the order of the columns of its product.
        self._readers = [
            [(g, s) for g, names in enumerate(slots) for s, read in enumerate(names) if read == f]
            for f in self.features
        ]
        self.projections = nn.ModuleList(
            SharedProjection([_projection(networks[g], name) for g, _ in readers])
            for name, readers in zip(self.features, self._readers, strict=True)
        )
        self._slots = len(slots[0])
        self._count = len(genotypes)
        self._cell_inputs = [cell.inputs for cell in cells]
        self.cells = nn.ModuleList(
            _StackedCell(cell, [cast(FusionCell, network.cells[k]) for network in networks])
            for k, cell in enumerate(cells)
        )
        self.norm = StackedLayerNorm([network.head.norm for network in networks])
        self.classifier = StackedLinear([network.head.classifier for network in networks])

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return logits (B, G, K) from the pooled ``features``, (B, L, C_raw) each."""
        nodes = self._reshaped(pooled)
        outputs = []
        for k, (cell, (x, y)) in enumerate(zip(self.cells, self._cell_inputs, strict=True)):
            nodes[f"cell{k + 1}"] = cell(nodes[x], nodes.get(y))
            outputs.append(nodes[f"cell{k + 1}"])
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        logits: Tensor = self.classifier(self.norm(joined).relu().flatten(2))
        return logits.transpose(0, 1)

    def _reshaped(self, pooled: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the reshaped features by slot, (G, B, L, C) each."""
        found: dict[tuple[int, int], Tensor] = {}
        for readers, project, x in zip(self._readers, self.projections, pooled, strict=True):
            found.update(zip(readers, project(x), strict=True))
        shape = (self._count, *pooled[0].shape[:2], -1)
        return {
            str(s): torch.stack([found[g, s] for g in range(self._count)]).view(shape)
            for s in range(self._slots)
        }


class _StackedCell(nn.Module):
    def __init__(self, form: Cell, cells: Sequence[FusionCell]) -> None:
        super().__init__()
        self.step_inputs = cells[0].step_inputs
        self.operations = nn.ModuleList(
            STACKED[form.steps[m].op]([cell.operations[number] for cell in cells])
            for number, (m, _) in enumerate(self.step_inputs)
        )
        outputs = [cell.output for cell in cells]
        self.merge = _merge(outputs)
        self.norm = StackedLayerNorm([output.norm for output in outputs])

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        nodes = {"x": x} if y is None else {"x": x, "y": y}
        outputs = []
        for (m, names), operation in zip(self.step_inputs, self.operations, strict=True):
            # A name that is not there is a zero step: its output is zero (Eq. 4).
            first, second = (nodes[n] if n in nodes else torch.zeros_like(x) for n in names)
            nodes[f"step{m + 1}"] = operation(first, second)
            outputs.append(nodes[f"step{m + 1}"])
        if self.merge is not None:
            x = x + self.merge(*outputs)
        elif outputs:
            x = x + outputs[0]
        z: Tensor = self.norm(x)
        return z


def _merge(outputs: Sequence[CellOutput]) -> StackedFC | None:
    layers = [output.merge for output in outputs if output.merge is not None]
    return StackedFC(layers, outputs[0].dropout) if layers else None


def _projection(network: FusionNetwork, name: str) -> Projection:
    return cast(Projection, network.projections[network.features.index(name)])
