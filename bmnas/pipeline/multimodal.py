"""Backbones and a fusion network as one: raw inputs to logits, measured on a part of a task.

Legend: B batch, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.backbones import Backbone
from bmnas.features.missing import completed, repeated, silent
from bmnas.features.pairs import RawPairSamples, gallery
from bmnas.features.reshape import MASK, Reading
from bmnas.features.samples import (
    FeatureSamples,
    RawInput,
    RawSamples,
    Samples,
    iterate_batches,
    label_tensor,
)
from bmnas.machine.costs import count_parameters, hardware, measure_latency
from bmnas.machine.runtime import Runtime
from bmnas.report.metrics import BatchLatency, LatencyMetrics
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.missing import PartialFusion
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Array, Part, Task
from bmnas.training.heads import TaskHead
from bmnas.training.matching import shared_words
from bmnas.training.metrics import Evaluation, Forward, Output, evaluate, logits_of, predict
from bmnas.training.settings import Weighing

#: The names of the fusion network among the members of a weighing, and, in a matching task, of how
#: similar the words are that the modalities' own heads predict.
FUSION, WORDS = "fusion network", "shared words"

#: From rows of a modality to what a network gets instead.
Change = Callable[[Array], Array]

_HEAD = ".own logits"  # with the modality in front, what its head says; no feature has a blank
_LATENCY_BATCHES = (1, 64)
_PAIRS = 10_000_000  # of a gallery that is tested; that of Flickr30K has five million


class MultimodalNetwork(nn.Module):
    """Backbones, pooling and a fusion network: raw inputs to logits.

    It holds copies of the backbones, each cut after the last stage that ``fusion`` reads, and none
    of modalities that are not read. ``modalities`` are the inputs of ``forward`` in order.

    With a ``weighing`` the logits are a weighted sum of those of ``fusion``, member ``FUSION``, and
    of each modality's own head that has a weight; what no member needs is cut off. Of a matching
    task both heads are one member, ``WORDS``, which does not learn. Raises ValueError for a
    backbone without a head.

    A sample may lack a modality whose backbone allows it. Its features are zeros then, which
    ``PartialFusion`` replaces, its logits the mean of the other members'. In training
    ``modality_dropout`` is how often a modality that may be lacking is left out.
    """

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        fusion: Fusion,
        weighing: Weighing | None = None,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.weighing = weighing
        self.features = fusion.features
        weights = () if weighing is None else weighing.weights
        self.compares = WORDS in weights
        self.heads = tuple(n for n in backbones if self.compares or n in weights)
        taps: dict[str, list[str]] = {}
        for feature in self.features:
            modality, _, name = feature.partition(".")
            taps.setdefault(modality, []).append(name)
        self.modalities = tuple(n for n in backbones if n in taps or n in self.heads)
        self.backbones = nn.ModuleDict()
        for name in self.modalities:
            backbone = copy.deepcopy(backbones[name])
            self.backbones[name] = backbone
            if name not in self.heads:
                backbone.truncate(1 + max(backbone.feature_names.index(tap) for tap in taps[name]))
            elif backbone.head is None:
                raise ValueError(f"the backbone of {name} has no head of its own")
            else:
                backbone.drop_unused()
        self.reading = Reading(fusion.length)
        self.pool = self.reading.module()
        self.optional = tuple(n for n in self.modalities if self.backbone(n).absent is not None)
        if not {*self.optional}.isdisjoint(taps):
            channels = channels_of({n: self.backbone(n) for n in self.modalities})
            fusion = PartialFusion(fusion, channels, self.optional, modality_dropout)
        self.fusion = fusion

    def backbone(self, modality: str) -> Backbone:
        """Return the backbone of ``modality``."""
        return cast(Backbone, self.backbones[modality])

    def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
        """Return what the training of all of it minimises: each head has a loss of its own."""
        if not self.heads or isinstance(output, Tensor):
            return self.fusion.loss(head, output, labels)
        # The first is the sum of what the others are.
        own, alone = output[1 : -len(self.heads)], output[-len(self.heads) :]
        loss = head.summed_loss(alone, labels)
        if own:
            loss = loss + self.fusion.loss(head, own if len(own) > 1 else own[0], labels)
        return loss

    def forward(self, *inputs: Tensor) -> Output:
        """Return logits (B, K) from one raw input per modality, each (B, *shape).

        In training this is all that the fusion network returns; with a weighing the sum, then all
        that the fusion network returns, and the logits of every head.
        """
        output, members = self.fuse(*self.read(*inputs))
        if self.weighing is None:
            return output
        total = self.weighing.of(members)
        if not self.training:
            return total
        own = output if isinstance(output, tuple) else (output,)
        heads = [members[name] for name in self.heads]
        return (total, *(own if self.features else ()), *heads)

    def total(self, members: Tensor) -> Tensor:
        """Return the logits (n, K) from those of all members (n, M, K)."""
        if self.weighing is None:
            return members[:, 0]
        return self.weighing.of(dict(zip(self.weighing.weights, members.unbind(1), strict=True)))

    def members(self, *inputs: Tensor) -> Tensor:
        """Return the logits (B, M, K) of the M members of the weighing, in its order."""
        assert self.weighing is not None
        _, members = self.fuse(*self.read(*inputs))
        return torch.stack([members[name] for name in self.weighing.weights], dim=1)

    def read(self, *inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what the backbones say of one raw input per modality, each (B, *shape).

        That is the pooled features (B, L, C_raw) that the fusion network reads, by name, and the
        logits (B, K) of the modalities' own heads, by modality. Of a fusion network that reads
        tokens (B, T, C_raw), the masks (B, T) are among them.
        """
        found: dict[str, Tensor] = {}
        alone: dict[str, Tensor] = {}
        for name, x in zip(self.modalities, inputs, strict=True):
            own, logits = self.read_one(name, x)
            found |= own
            alone |= logits
        return found, alone

    def read_one(self, name: str, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what ``read`` does, of the modality ``name`` alone."""
        found: dict[str, Tensor] = {}
        alone: dict[str, Tensor] = {}
        backbone = self.backbone(name)
        given = backbone.given(x)
        if given is not None and self.training:
            x = repeated(x, given)
        if name in self.heads:
            features, logits = backbone.features_and_logits(x)
            alone[name] = silent(logits, given)
        else:
            features = backbone.features(x)
        for tap, feature in zip(backbone.feature_names, features, strict=True):
            if f"{name}.{tap}" in self.features:
                kept = found[f"{name}.{tap}"] = silent(self.pool(feature), given)
                if (mask := self.reading.mask(kept, backbone.mask(x))) is not None:
                    found[f"{name}.{tap}{MASK}"] = mask
        return found, alone

    def fuse(
        self, pooled: Mapping[str, Tensor], alone: Mapping[str, Tensor]
    ) -> tuple[Output, dict[str, Tensor]]:
        """Return what the fusion network gives, and the logits of all members by name.

        ``pooled`` and ``alone`` are what ``read`` returns.
        """
        inputs = [pooled[name] for name in self.features]
        masks = [pooled[n + MASK] for n in self.features if n + MASK in pooled]
        return self._fused((inputs, masks) if masks else (inputs,), alone)

    def members_of_rows(self, inputs: Sequence[Tensor], *more: Any) -> Tensor:
        """Return the logits (B, M, K) of the M members, in the order of the weighing, else M is 1.

        ``inputs``, masks and extras are a batch of what ``read_rows`` returns, see ``Batch``.
        """
        count = len(self.features)
        alone = dict(zip(self.heads, inputs[count:], strict=True))
        _, members = self._fused((inputs[:count], *more), alone)
        names = (FUSION,) if self.weighing is None else self.weighing.weights
        return torch.stack([members[name] for name in names], dim=1)

    def _fused(
        self, arguments: tuple[Any, ...], alone: Mapping[str, Tensor]
    ) -> tuple[Output, dict[str, Tensor]]:
        """Return what ``fuse`` does from what the fusion network is called with."""
        if self.compares:
            alone = {WORDS: shared_words(*alone.values())}
        if not self.features:
            return next(iter(alone.values())), self._completed(alone)
        output: Output = self.fusion(*arguments)
        return output, self._completed({FUSION: logits_of(output), **alone})

    def _completed(self, members: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the logits (B, K) of all members, for samples that lack a modality too.

        In training each has a loss of its own, so that nothing is to be made up.
        """
        return dict(members) if self.training else completed(members, self.optional)


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


def raw_samples(
    task: Task,
    network: MultimodalNetwork,
    *parts: Part,
    changes: Mapping[str, Change] | None = None,
    training: bool = False,
) -> RawSamples:
    """Return the samples of ``parts`` as raw inputs of the modalities that ``network`` reads.

    ``changes``, by modality, are what is done to its rows before; ``training`` is as in
    ``RawSamples``.
    """
    samples = task.samples(*parts)
    inputs = [
        RawInput(task.modality(name), network.backbone(name), samples, (changes or {}).get(name))
        for name in network.modalities
    ]
    pairs = training and task_kind(task.kind).PAIRS
    kind = RawPairSamples if pairs else RawSamples
    return kind(inputs, label_tensor(task, samples), training=training)


def evaluate_fusion(
    task: Task,
    network: MultimodalNetwork,
    part: Part,
    head: TaskHead,
    runtime: Runtime,
    changes: Mapping[str, Change] | None = None,
) -> Evaluation:
    """Return loss and score of a joined network on one part, in evaluation mode.

    Of a matching task that is a gallery, of whose rows the backbones see each sample's once.
    ``changes`` are as in ``raw_samples``.
    """
    samples, device = raw_samples(task, network, part, changes=changes), runtime.device
    network.to(device).eval()
    if not task_kind(task.kind).PAIRS:
        return evaluate(network, lambda inputs: network(*inputs), samples, head, device)
    members, labels = judged_pairs(network, samples, device)
    return Evaluation.of(network.total(members), labels, head)


def judged_pairs(
    network: MultimodalNetwork, samples: RawSamples, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the logits (n, M, 1) of all members on a gallery of ``samples``, and its labels."""
    every = gallery(read_rows(network, samples, device), _PAIRS)
    return predict(network, network.members_of_rows, every, device)


@torch.no_grad()
def read_rows(
    network: MultimodalNetwork, samples: RawSamples, device: torch.device
) -> FeatureSamples:
    """Return what backbones say of ``samples``, each row read once, in evaluation mode.

    That is the pooled features or tokens, then what the heads say that have a weight. They lie on
    the CPU; ``network`` is left in the mode that it was in.
    """
    training, arrays, rows = network.training, dict[str, list[Tensor]](), {}
    network.eval()
    for name, source in zip(network.modalities, samples.inputs, strict=True):
        _, first, place = np.unique(source.rows, return_index=True, return_inverse=True)
        rows[name] = torch.from_numpy(place)
        for chosen in torch.from_numpy(first).split(source.at_once):
            found, alone = network.read_one(name, source.batch(chosen).to(device))
            for feature, x in (found | {n + _HEAD: x for n, x in alone.items()}).items():
                kept = x if x.dtype == torch.bool else x.float()
                arrays.setdefault(feature, []).append(kept.cpu())
    network.train(training)
    joined = {name: torch.cat(parts) for name, parts in arrays.items()}
    masks = {name: joined.pop(name + MASK) for name in network.features if name + MASK in joined}
    names = (*network.features, *(name + _HEAD for name in network.heads))
    return FeatureSamples(names, joined, rows, samples.labels, masks)


@torch.no_grad()
def read_samples(
    network: MultimodalNetwork, samples: Samples, chosen: Tensor, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what the backbones say of the samples ``chosen`` (n,) and their labels, on the CPU.

    That is the pooled features (n, L, C_raw) by name, or tokens and their masks, and by modality
    the logits (n, K) of its head.
    """
    found: dict[str, list[Tensor]] = {}
    labels = []
    for batch in iterate_batches(samples, chosen.split(samples.at_once), device):
        pooled, alone = network.read(*batch.inputs)
        for name, x in (pooled | alone).items():
            found.setdefault(name, []).append((x if x.dtype == torch.bool else x.float()).cpu())
        labels.append(batch.labels.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(labels)


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
