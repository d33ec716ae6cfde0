"""One training of the evaluation stage, in a folder that is ready for it (spec section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bmnas.features.cache import weights_hash
from bmnas.features.samples import label_tensor, samples_per_epoch
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import COMPILE
from bmnas.machine.distributed import on_rank_zero
from bmnas.machine.errors import UserError
from bmnas.machine.files import sha256_json
from bmnas.machine.runtime import seed_stage
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.joint import channels_of, evaluate_fusion, fit_fusion, torch_latency
from bmnas.pipeline.multimodal import MultimodalNetwork, parameter_counts
from bmnas.pipeline.run_folder import Existing, Run, require_same
from bmnas.pipeline.search import write_pictures
from bmnas.pipeline.trained import TaskInfo, TrainedNetwork
from bmnas.pipeline.unimodal import Unimodal, evaluate_unimodal, unimodal_networks
from bmnas.report.metrics import MemoryPeak, RunMetrics, TrainedMetrics, UnimodalMetrics
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.registry import build_fusion, takes_unimodal_logits
from bmnas.tasks.task import Task


@dataclass(frozen=True)
class TrainResult:
    """A trained network: its folder and file, what it is, and ``metrics`` as in the file."""

    run: Path
    network: Path
    architecture: Architecture
    metrics: Mapping[str, Any]

    @property
    def genotype(self) -> Architecture | None:
        """What a search found; None for a hand-made fusion."""
        return self.architecture if self.architecture.SEARCHED else None

    @property
    def score(self) -> float:
        """The test score, as a fraction."""
        return float(self.metrics["test"]["score"])


def read_training(folder: Run, architecture: Architecture) -> TrainResult:
    """Return what a finished training left in ``folder``; raises UserError without one."""
    metrics = folder.read_metrics()
    if metrics.test is None:
        raise UserError(f"{folder.path}: holds no finished training; start anew with --overwrite")
    return TrainResult(folder.path, folder.network, architecture, metrics.to_dict())


def begin_training(folder: Run, wanted: Mapping[str, Any], existing: Existing) -> bool:
    """Tell whether a training in ``folder`` starts anew, else it goes on.

    Raises UserError for a training that is there when ``existing`` refuses it, or when it was one
    with other settings than ``wanted``.
    """
    if existing == "overwrite":
        folder.remove_training()
    started = [f for f in (folder.network, folder.train_checkpoint) if f.exists()]
    if started and existing == "refuse":
        raise UserError(
            f"{started[0]}: there is a training already; go on with --resume, start anew with "
            "--overwrite, or choose another folder with --run"
        )
    if started:
        require_same(folder, wanted, ("train", "backbones"))
    return not started


def misfit(feature: str, task: Task, has: Iterable[str]) -> UserError:
    """Return the error for a genotype that reads a feature which ``task`` does not have."""
    return UserError(
        f"the genotype reads {feature}, task {task.name} has {', '.join(has)}: it was found for "
        "another task; give its own with --task"
    )


def run_training(context: RunContext, architecture: Architecture) -> None:
    """Train, test and leave the network's file, which says that all is done."""
    task, runtime, head = context.task, context.runtime, context.head
    networks = unimodal_networks(context)
    network, checkpoint = _fit(context, architecture, networks)
    # Before test and latency, which are no training.
    seconds, costs = checkpoint.seconds, checkpoint.meter.to_dict()
    test = evaluate_fusion(task, network, "test", head, runtime)
    alone = {
        name: evaluate_unimodal(context, name, found.backbone, "test")
        for name, found in networks.items()
    }
    samples, settings = task.samples("test"), context.config.train
    seen = samples_per_epoch(len(task.samples("train", "validation")), settings.batch_size)
    mean = torch.stack([evaluation.logits for evaluation in alone.values()]).mean(0)
    measured = RunMetrics(
        metric=head.metric,
        unimodal={
            name: UnimodalMetrics(found.validation, alone[name].score, found.parameters)
            for name, found in networks.items()
        },
        test=TrainedMetrics(
            score=test.score,
            loss=test.loss,
            samples=len(samples),
            # A fusion that needs no training: the mean of the unimodal networks' logits.
            unimodal_mean=head.score(mean, label_tensor(task, samples)),
        ),
        parameters=parameter_counts(network),
        seconds={"train": seconds, "train_compile": costs["seconds"][COMPILE]},
        samples_per_second={"train": settings.epochs * seen / costs["seconds"]["train"]},
        peak_memory={"train": MemoryPeak(**costs["peak_memory"])},
    )
    on_rank_zero(lambda: _write(context, architecture, network, measured))
    checkpoint.remove()


def _write(
    context: RunContext,
    architecture: Architecture,
    network: MultimodalNetwork,
    measured: RunMetrics,
) -> None:
    """Write metrics and pictures, then the network, with which the training is finished."""
    task, folder = context.task, context.folder
    latency = torch_latency(task, network, context.runtime)
    folder.update_metrics(dataclasses.replace(measured, latency=latency))
    write_pictures(folder, architecture if architecture.SEARCHED else None, context.progress)
    threshold = context.head.threshold
    info = TaskInfo(task.name, task.kind, task.class_names, threshold, task.source)
    dropout = context.config.train.dropout
    TrainedNetwork(network.cpu(), architecture, info, dropout).save(folder.network)


def _fit(
    context: RunContext, architecture: Architecture, networks: Mapping[str, Unimodal]
) -> tuple[MultimodalNetwork, Checkpoint]:
    settings = context.config.train
    backbones = {name: found.backbone for name, found in networks.items()}
    channels = channels_of(backbones)
    read = architecture.features if architecture.SEARCHED else ()
    missing = [name for name in read if name not in channels]
    if missing:
        raise misfit(missing[0], context.task, channels)
    plain = architecture.to_dict()
    # Where it comes from changes nothing in it.
    plain.pop("provenance", None)
    depends = {
        "genotype": plain,
        "train": dataclasses.asdict(settings),
        "seed": context.seed,
        "backbones": {name: weights_hash(backbone) for name, backbone in backbones.items()},
    }
    folder = context.folder
    checkpoint = Checkpoint(folder.train_checkpoint, sha256_json(depends), folder.training)
    seed_stage(context.seed, "train")
    fusion = build_fusion(
        architecture, channels, classes=context.task.outputs, dropout=settings.dropout
    )
    with checkpoint.meter.stage("train"):
        adds = settings.unimodal_logits and takes_unimodal_logits(architecture)
        network = fit_fusion(context, backbones, fusion, checkpoint, unimodal_logits=adds)
    return network, checkpoint
