"""What networks cost once they are served: their weights, and latency as a table of parts says.

A network is cut into backbones up to the deepest stage that is read, the pooling of each feature,
the parts that its fusion network names (``Fusion.timed_parts``), the operations between these,
counted, and what the task's head serves. A prediction adds up.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch
from torch import Tensor, nn

from bmnas.backbones import Backbone
from bmnas.features.reshape import Reading
from bmnas.features.samples import RawInput
from bmnas.machine.costs import count_parameters
from bmnas.pipeline.latency import LatencyTable, Trace, axes
from bmnas.pipeline.multimodal import FUSION, WORDS, MultimodalNetwork, channels_of
from bmnas.spaces.architecture import Architecture, by_modality
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.registry import build_fusion, space_of
from bmnas.strategies.target import Cost
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Task
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import logits_of
from bmnas.training.settings import Weighing


class NetworkCosts:
    """What networks over the features of ``backbones`` cost once they are served.

    Without a ``table`` there are no latencies. The first validation sample goes through everything.
    """

    def __init__(
        self,
        task: Task,
        backbones: Mapping[str, Backbone],
        head: TaskHead,
        table: LatencyTable | None,
    ) -> None:
        self._task, self._head, self._table = task, head, table
        self._backbones = {n: copy.deepcopy(b).cpu().eval() for n, b in backbones.items()}
        self._fusions: dict[str, _Fusion] = {}
        self._known: dict[str, tuple[int, float]] = {}

    def predict(self, architecture: Architecture, *, heads: bool) -> Cost:
        """Return what the network of ``architecture`` costs by the table.

        With ``heads`` the logits of all modalities' own networks are added to those of its fusion.
        """
        name = _name(architecture)
        if name not in self._fusions:
            self._fusions[name] = self._fusion(architecture)
        fusion, table = self._fusions[name], self._table
        stages = self._stages(fusion.features, heads=heads)
        sizes, latencies = zip(*(self._stage(*stage) for stage in stages.items()), strict=True)
        parameters = fusion.parameters + sum(sizes)
        if table is None:
            return Cost(None, parameters)
        latency = table.empty + fusion.latency_ms + sum(latencies)
        if heads:
            latency += 2 * len(stages) * table.operation  # a product and a sum each
        return Cost((table.scale or 1.0) * latency, parameters)

    def measure(self, architecture: Architecture, *, heads: bool) -> Cost:
        """Return what the whole network costs, exported and timed."""
        predicted, table = self.predict(architecture, heads=heads), self._table
        if table is None:
            return predicted
        own = [WORDS] if task_kind(self._task.kind).PAIRS else list(self._backbones)
        members = [FUSION, *own]
        weighing = Weighing(dict.fromkeys(members, 1.0)) if heads else None
        network = MultimodalNetwork(self._backbones, self._built(architecture), weighing).eval()
        inputs = [self._inputs[name] for name in network.modalities]
        key = f"{_name(architecture)}{' + unimodal logits' if heads else ''}"
        found = table.network(key, _Served(network, self._head), inputs)
        return dataclasses.replace(predicted, latency_ms=found)

    def compare(self, architectures: Iterable[tuple[Architecture, bool]]) -> None:
        """Let the table know how whole networks, with heads or without, compare with their parts.

        By the median of the ratios.
        """
        if self._table is not None and self._table.scale is None:
            pairs = [
                (self.measure(found, heads=heads), self.predict(found, heads=heads))
                for found, heads in architectures
            ]
            self._table.scale = median(
                whole.latency_ms / parts.latency_ms
                for whole, parts in pairs
                if whole.latency_ms and parts.latency_ms
            )

    @torch.no_grad()
    def _fusion(self, architecture: Architecture) -> _Fusion:
        fusion = self._built(architecture).eval()
        size = count_parameters(fusion)
        if self._table is None:
            return _Fusion(fusion.features, size, 0.0)
        reading = Reading(fusion.length)
        raw = {name: self._features[name] for name in fusion.features}
        kept = [reading.read(x) for x in raw.values()]
        masks = [reading.mask(x, self._masks[n]) for n, x in zip(raw, kept, strict=True)]
        arguments = (kept,) if None in masks else (kept, masks)
        trace = Trace()
        logits = logits_of(trace.run(fusion, fusion.timed_parts(), arguments))
        table = self._table
        latency = trace.between * table.operation
        latency += sum(table.part(part.key, part.module, part.arguments) for part in trace.parts)
        latency += table.part(f"served {axes(logits)}", _Outputs(self._head), (logits,))
        for name, x in raw.items():
            key = f"{name} {axes(x)} as {axes(reading.read(x))}"
            latency += table.part(key, reading.module(), (x,))
        return _Fusion(fusion.features, size, latency)

    def _built(self, architecture: Architecture) -> Fusion:
        classes = self._task.outputs
        # What is drawn elsewhere must not depend on what was looked at here.
        with torch.random.fork_rng(devices=[]):
            return build_fusion(
                architecture, channels_of(self._backbones), classes=classes, dropout=0.0
            )

    def _stages(self, features: Sequence[str], *, heads: bool) -> dict[str, int | None]:
        """Return how many stages of each backbone are needed, None with its head."""
        if heads:
            return dict.fromkeys(self._backbones)
        found: dict[str, int | None] = {}
        for name, own in by_modality(features).items():
            names = self._backbones[name].feature_names
            found[name] = 1 + max(names.index(feature.partition(".")[2]) for feature in own)
        return found

    def _cut(self, name: str, count: int | None) -> Backbone:
        backbone = copy.deepcopy(self._backbones[name])
        if count is None:
            backbone.drop_unused()
        else:
            backbone.truncate(count)
        return backbone

    def _stage(self, name: str, count: int | None) -> tuple[int, float]:
        """Return weights and milliseconds of a backbone up to a stage, see ``_stages``."""
        key = f"{name}, whole" if count is None else f"{name} to stage {count}"
        if key not in self._known:
            backbone = self._cut(name, count)
            latency = 0.0
            if self._table is not None:
                latency = self._table.part(key, _Stages(backbone), (self._inputs[name],))
            self._known[key] = count_parameters(backbone), latency
        return self._known[key]

    @cached_property
    def _inputs(self) -> dict[str, Tensor]:
        """The raw input (1, *shape) of each modality."""
        sample = self._task.samples("validation")[:1]
        return {
            name: RawInput(self._task.modality(name), backbone, sample).batch(torch.zeros(1).long())
            for name, backbone in self._backbones.items()
        }

    @cached_property
    def _features(self) -> dict[str, Tensor]:
        """The raw feature (1, C_raw, *rest) of each name."""
        return {
            f"{name}.{feature}": x
            for name, backbone in self._backbones.items()
            for feature, x in zip(
                backbone.feature_names, backbone.features(self._inputs[name]), strict=True
            )
        }

    @cached_property
    def _masks(self) -> dict[str, Tensor | None]:
        """What each backbone says of padding, by feature."""
        return {
            f"{name}.{feature}": backbone.mask(self._inputs[name])
            for name, backbone in self._backbones.items()
            for feature in backbone.feature_names
        }


@dataclass(frozen=True)
class _Fusion:
    """A fusion network: what it reads, its weights, and what it takes with all that it reads."""

    features: tuple[str, ...]
    parameters: int
    latency_ms: float


class _Stages(nn.Module):
    """A backbone as far as it is kept: its last feature, or its logits."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        if self.backbone.head is None:
            return self.backbone.features(x)[-1]
        logits: Tensor = self.backbone(x)
        return logits


class _Outputs(nn.Module):
    """What is served of logits (B, K)."""

    def __init__(self, head: TaskHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, logits: Tensor) -> tuple[Tensor, ...]:
        return self.head.served(logits)


class _Served(nn.Module):
    """All of a network, from raw inputs to what is served."""

    def __init__(self, network: MultimodalNetwork, head: TaskHead) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.head.served(logits_of(self.network(*inputs)).float())


def _name(architecture: Architecture) -> str:
    space = space_of(architecture)
    return f"{space.NAME} {space.canonical(architecture)}"
