"""The discretised network of a genotype, and its union with the backbones.

Legend: B batch, L length, C channels, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bmnas.backbones.base import Backbone
from bmnas.genotype import Cell, Genotype
from bmnas.metrics import HeadsObjective, Objective, Output, logits_of
from bmnas.primitives import OPERATIONS, CellOutput, Head
from bmnas.reshape import Pool, Projection


class FusionCell(nn.Module):
    """A Cell with its chosen steps; ``zero`` steps and what only they need are not built."""

    def __init__(self, cell: Cell, channels: int, length: int, dropout: float) -> None:
        super().__init__()
        live = cell.live_steps()
        self.step_inputs = [(m, cell.steps[m].inputs) for m in live]
        self.operations = nn.ModuleList(
            OPERATIONS[cell.steps[m].op](channels, length, dropout) for m in live
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


class Fusion(nn.Module):
    """What fuses pooled features: reads ``features``, in their order, pooled to ``length``."""

    features: tuple[str, ...]
    length: int

    @property
    def classifier(self) -> nn.Module:
        """The last layer, which gives the logits and is counted apart."""
        raise TypeError(f"{type(self).__name__} does not name its classifier")

    def objective(self, objective: Objective) -> Objective:
        """Return what its training minimises: the task's objective, or one with losses of its own.

        Such an objective reads what ``forward`` gives after the logits while training.
        """
        return objective

    def forward(self, pooled: Sequence[Tensor]) -> Output:
        """Return logits (B, K) from one pooled feature (B, L, C_raw) for each of ``features``."""
        raise TypeError(f"{type(self).__name__} does not define what it computes")


class FusionNetwork(Fusion):
    """The fusion network of a genotype: reshape layers, Cells, head.

    ``channels_raw`` maps feature names to C_raw. ``features`` are the names it reads, in order;
    features that no Cell reads have no reshape layer.
    """

    def __init__(
        self, genotype: Genotype, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> None:
        super().__init__()
        channels, length = genotype.channels, genotype.length
        self.features = genotype.live_features()
        self.length = length
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


class MultimodalNetwork(nn.Module):
    """Backbones, pooling and a fusion network: raw inputs to logits.

    Modalities that ``fusion`` does not read are left out, and every backbone is cut, in place,
    after the last stage that is read. ``modalities`` are the inputs of ``forward`` in order.

    With ``unimodal_logits`` all modalities and whole backbones stay, and the logits are the sum of
    those of ``fusion`` and of each backbone's own head. Raises ValueError for a backbone without.
    """

    def __init__(
        self, backbones: Mapping[str, Backbone], fusion: Fusion, *, unimodal_logits: bool = False
    ) -> None:
        super().__init__()
        self.unimodal_logits = unimodal_logits
        self.features = fusion.features
        taps: dict[str, list[str]] = {}
        for feature in self.features:
            modality, _, name = feature.partition(".")
            taps.setdefault(modality, []).append(name)
        self.modalities = tuple(name for name in backbones if unimodal_logits or name in taps)
        self.backbones = nn.ModuleDict({name: backbones[name] for name in self.modalities})
        for name in self.modalities:
            backbone = backbones[name]
            if not unimodal_logits:
                backbone.truncate(1 + max(backbone.feature_names.index(tap) for tap in taps[name]))
            elif backbone.head is None:
                raise ValueError(f"the backbone of {name} has no head of its own")
            else:
                backbone.drop_unused()
        self.pool = Pool(fusion.length)
        self.fusion = fusion

    def backbone(self, modality: str) -> Backbone:
        """Return the backbone of ``modality``."""
        return cast(Backbone, self.backbones[modality])

    def objective(self, objective: Objective) -> Objective:
        """Return what the training of all of it minimises: each head has a loss of its own."""
        if self.unimodal_logits:
            return HeadsObjective(objective.kind, objective.threshold)
        return self.fusion.objective(objective)

    def forward(self, *inputs: Tensor) -> Output:
        """Return logits (B, K) from one raw input per modality, each (B, *shape).

        In training this is all that the fusion network returns; with ``unimodal_logits`` the sum,
        then what was added up.
        """
        raw: dict[str, Tensor] = {}
        unimodal = []
        for name, x in zip(self.modalities, inputs, strict=True):
            backbone = self.backbone(name)
            if self.unimodal_logits:
                features, logits = backbone.features_and_logits(x)
                unimodal.append(logits)
            else:
                features = backbone.features(x)
            for tap, feature in zip(backbone.feature_names, features, strict=True):
                raw[f"{name}.{tap}"] = feature
        output: Output = self.fusion([self.pool(raw[name]) for name in self.features])
        if not self.unimodal_logits:
            return output
        every = [logits_of(output), *unimodal]
        total = torch.stack(every).sum(0)
        return (total, *every) if self.training else total
