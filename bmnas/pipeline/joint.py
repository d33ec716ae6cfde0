"""Training and measuring a fusion network together with its backbones.

Legend: B batch, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch

from bmnas.backbones import Backbone
from bmnas.features.samples import RawInput, RawSamples, Samples, batches_per_epoch, label_tensor
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import hardware, measure_latency
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.multimodal import MultimodalNetwork
from bmnas.report.metrics import BatchLatency, LatencyMetrics
from bmnas.spaces.fusion import Fusion
from bmnas.tasks.task import Part, Task
from bmnas.training.fit import fit
from bmnas.training.heads import TaskHead
from bmnas.training.metrics import Evaluation, Forward, evaluate
from bmnas.training.settings import Recipe, TrainConfig

_LATENCY_BATCHES = (1, 64)


def channels_of(backbones: Mapping[str, Backbone]) -> dict[str, int]:
    """Return C_raw of every feature by its name, ``<modality>.<feature>``."""
    return {
        f"{modality}.{feature}": channels
        for modality, backbone in backbones.items()
        for feature, channels in zip(backbone.feature_names, backbone.feature_channels, strict=True)
    }


def fit_fusion(
    context: RunContext,
    backbones: Mapping[str, Backbone],
    fusion: Fusion,
    checkpoint: Checkpoint | None,
    *,
    unimodal_logits: bool,
) -> MultimodalNetwork:
    """Train ``fusion`` on train and validation and return it joined with its backbones.

    The backbones are trained along with a peak learning rate of their own, or stay as they are
    when the settings of the training freeze them: then the feature cache is used. With
    ``unimodal_logits`` every head has a loss of its own; frozen backbones have nothing to learn, so
    with them ``fusion`` is trained as if the logits were not added.
    """
    task, config, runtime = context.task, context.config.train, context.runtime
    parts: tuple[Part, ...] = ("train", "validation")
    network = MultimodalNetwork(backbones, fusion, unimodal_logits=unimodal_logits)
    network.to(runtime.device)
    recipe = Recipe(
        config.epochs, config.batch_size, config.max_lr, config.min_lr, config.weight_decay
    )
    samples: Samples
    if config.freeze_backbones:
        cache = context.features(backbones, parts, fusion.length)
        samples = cache.on(runtime.device, fusion.features).samples(*parts)
        trained: Fusion | MultimodalNetwork = fusion
        forward: Forward = runtime.compiled(fusion, _steps(samples, config))
    else:
        samples = raw_samples(task, network, *parts)
        recipe = dataclasses.replace(recipe, backbone_lr=config.backbone_lr)
        trained = network
        forward = forward_of(network, runtime, _steps(samples, config))
    fit(
        trained,
        forward,
        samples,
        context.head,
        recipe,
        checkpoint=checkpoint,
        progress=context.progress,
        stage="training",
        loss=functools.partial(trained.loss, context.head),
    )
    return network


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


def _steps(samples: Samples, config: TrainConfig) -> int:
    return config.epochs * batches_per_epoch(len(samples), config.batch_size)
