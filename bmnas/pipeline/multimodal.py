"""Backbones and a fusion network as one: raw inputs to logits, measured on a part of a task.

Legend: B batch, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from bmnas.backbones import Backbone
from bmnas.features.reshape import Pool
from bmnas.features.samples import RawInput, RawSamples, label_tensor
from bmnas.machine.costs import count_parameters, hardware, measure_latency
from bmnas.machine.runtime import Runtime
from bmnas.report.metrics import BatchLatency, LatencyMetrics
from bmnas.spaces.fusion import Fusion
from bmnas.tasks.task import Part, Task
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Evaluation, Forward, Output, evaluate, logits_of

_LATENCY_BATCHES = (1, 64)


class MultimodalNetwork(nn.Module):
    """Backbones, pooling and a fusion network: raw inputs to logits.

    It holds copies of the backbones, each cut after the last stage that ``fusion`` reads, and none
    of modalities that are not read. ``modalities`` are the inputs of ``forward`` in order.

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
        self.backbones = nn.ModuleDict()
        for name in self.modalities:
            backbone = copy.deepcopy(backbones[name])
            self.backbones[name] = backbone
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

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return what the training of all of it minimises: each head has a loss of its own."""
        if self.unimodal_logits and isinstance(output, tuple):
            # The first is the sum of the others.
            return head.summed_loss(output[1:], labels)
        return self.fusion.loss(head, output, labels)

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


def parameter_counts(network: MultimodalNetwork) -> dict[str, int]:
    """Return the weights of fusion network, classifier and backbones, each apart.

    ``fusion`` is the paper's model size: reshape layers, Cells and the head's LayerNorm.
    """
    classifier = count_parameters(network.fusion.classifier)
    return {
        "fusion": count_parameters(network.fusion) - classifier,
        "classifier": classifier,
        "backbones": count_parameters(network.backbones),
    }


def channels_of(backbones: Mapping[str, Backbone]) -> dict[str, int]:
    """Return C_raw of every feature by its name, ``<modality>.<feature>``."""
    return {
        f"{modality}.{feature}": channels
        for modality, backbone in backbones.items()
        for feature, channels in zip(backbone.feature_names, backbone.feature_channels, strict=True)
    }


def raw_samples(task: Task, network: MultimodalNetwork, *parts: Part) -> RawSamples:
    """Return the samples of ``parts`` as raw inputs of the modalities that ``network`` reads."""
    samples = task.samples(*parts)
    inputs = [
        RawInput(task.modality(name), network.backbone(name), samples)
        for name in network.modalities
    ]
    return RawSamples(inputs, label_tensor(task, samples))


def evaluate_fusion(
    task: Task, network: MultimodalNetwork, part: Part, head: TaskHead, runtime: Runtime
) -> Evaluation:
    """Return loss and score of a joined network on one part, in evaluation mode."""
    samples = raw_samples(task, network, part)
    network.to(runtime.device)
    return evaluate(network, lambda inputs: network(*inputs), samples, head, runtime.device)


def forward_of(network: MultimodalNetwork, runtime: Runtime, steps: int) -> Forward:
    """Return what maps a list of raw inputs to logits (B, K), for a loop of ``steps``."""
    call = runtime.compiled(network, steps)
    return lambda inputs: call(*inputs)


def torch_latency(task: Task, network: MultimodalNetwork, runtime: Runtime) -> LatencyMetrics:
    """Return the latency of ``network`` on test samples at batch 1 and 64."""
    network.to(runtime.device).eval()
    # Some hundred calls: compiled where that was asked for.
    forward = forward_of(network, runtime, steps=0)
    test = raw_samples(task, network, "test")
    found = {}
    for batch in _LATENCY_BATCHES:
        # A small test part is repeated to fill the batch.
        filled = test.batch(torch.arange(batch) % len(test))
        on_device = [x.to(runtime.device) for x in filled.inputs]

        def call(on_device: list[torch.Tensor] = on_device) -> None:
            with torch.inference_mode():
                forward(on_device)
            if runtime.device.type == "cuda":
                torch.cuda.synchronize(runtime.device)

        found[f"batch_{batch}"] = BatchLatency(**measure_latency(call).to_dict())
    machine = hardware(runtime.device)
    name = machine.get("accelerator", machine["processor"])
    return LatencyMetrics(
        torch=found, compiled=runtime.compiles(0), threads=machine["threads"], hardware=name
    )
