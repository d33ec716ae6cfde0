"""One training of the evaluation stage, in a folder that is ready for it (spec section 7)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bmnas.backbones import Backbone
from bmnas.features.cache import weights_hash
from bmnas.features.samples import label_tensor, samples_per_epoch
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.cost_meter import COMPILE
from bmnas.machine.costs import parameter_counts
from bmnas.machine.distribution.ranks import first
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime, seed_stage
from bmnas.pipeline.config import Config
from bmnas.pipeline.joint import channels_of, evaluate_fusion, fit_fusion, torch_latency
from bmnas.pipeline.multimodal import MultimodalNetwork
from bmnas.pipeline.run_folder import Existing, Run, require_same
from bmnas.pipeline.search import write_pictures
from bmnas.pipeline.trained import TaskInfo, TrainedNetwork
from bmnas.pipeline.unimodal import evaluate_unimodal, unimodal_networks
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.registry import build_fusion, takes_unimodal_logits
from bmnas.tasks.task import Task
from bmnas.training.heads import TaskHead, head_for


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
    if "test" not in metrics:
        raise UserError(f"{folder.path}: holds no finished training; start anew with --overwrite")
    return TrainResult(folder.path, folder.network, architecture, metrics)


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


@dataclass(frozen=True)
class Training:
    """One training in a folder that is ready for it."""

    folder: Run
    kept: Path
    architecture: Architecture
    task: Task
    config: Config
    seed: int
    runtime: Runtime
    progress: Progress

    def run(self, backbone_seed: int) -> None:
        """Train, test and leave the network's file, which says that all is done."""
        task, runtime, head = self.task, self.runtime, self._head()
        networks = unimodal_networks(
            task,
            self.config.unimodal,
            head,
            seed=backbone_seed,
            folder=self.kept,
            runtime=runtime,
            progress=self.progress,
        )
        backbones = {name: found.backbone for name, found in networks.items()}
        network, checkpoint = self._fit(backbones, head)
        # Before test and latency, which are no training.
        seconds, spent = checkpoint.seconds, checkpoint.spent.to_dict()
        test = evaluate_fusion(task, network, "test", head, runtime)
        heads = {
            name: evaluate_unimodal(task, name, found.backbone, "test", head, runtime)
            for name, found in networks.items()
        }
        unimodal = {
            name: {
                "validation": found.validation,
                "test": heads[name].score,
                "parameters": found.parameters,
            }
            for name, found in networks.items()
        }
        samples = task.samples("test")
        mean = torch.stack([head.logits for head in heads.values()]).mean(0)
        measured = {
            "metric": head.metric,
            "unimodal": unimodal,
            "test": {
                "score": test.score,
                "loss": test.loss,
                "samples": len(samples),
                # What fusion costs nothing: the mean of the unimodal networks' logits.
                "unimodal_mean": head.score(mean, label_tensor(task, samples)),
            },
            "parameters": parameter_counts(network),
            "seconds": {"train": seconds, "train_compile": spent["seconds"][COMPILE]},
            "samples_per_second": {"train": self._samples_seen() / spent["seconds"]["train"]},
            "peak_memory": {"train": spent["peak_memory"]},
        }
        first(lambda: self._write(network, measured, head))
        checkpoint.remove()

    def _write(
        self, network: MultimodalNetwork, measured: Mapping[str, Any], head: TaskHead
    ) -> None:
        task = self.task
        latency = torch_latency(task, network, self.runtime)
        self.folder.update_metrics({**measured, "latency": latency})
        write_pictures(self.folder, self._genotype, self.progress)
        info = TaskInfo(
            name=task.name,
            kind=task.kind,
            class_names=task.class_names,
            threshold=head.threshold,
            source=task.source,
        )
        dropout = self.config.train.dropout
        TrainedNetwork(network.cpu(), self.architecture, info, dropout).save(self.folder.network)

    def _fit(
        self, backbones: dict[str, Backbone], head: TaskHead
    ) -> tuple[MultimodalNetwork, Checkpoint]:
        settings = self.config.train
        channels = channels_of(backbones)
        read = self._genotype.features if self._genotype else ()
        missing = [name for name in read if name not in channels]
        if missing:
            raise misfit(missing[0], self.task, channels)
        depends = {
            **self._identity(),
            "train": dataclasses.asdict(settings),
            "seed": self.seed,
            "backbones": {name: weights_hash(backbone) for name, backbone in backbones.items()},
        }
        owner = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        checkpoint = Checkpoint(self.folder.train_checkpoint, owner, self.folder.training)
        seed_stage(self.seed, "train")
        fusion = build_fusion(
            self.architecture,
            channels,
            classes=self.task.outputs,
            dropout=settings.dropout,
        )
        adds = settings.unimodal_logits and takes_unimodal_logits(self.architecture)
        with checkpoint.spent.stage("train"):
            network = fit_fusion(
                self.task,
                backbones,
                fusion,
                dataclasses.replace(settings, unimodal_logits=adds),
                head,
                features=self.kept / "features",
                cache_dtype=self.config.search.cache_dtype,
                runtime=self.runtime,
                checkpoint=checkpoint,
                progress=self.progress,
            )
        return network, checkpoint

    @property
    def _genotype(self) -> Architecture | None:
        return self.architecture if self.architecture.SEARCHED else None

    def _identity(self) -> dict[str, Any]:
        """Return what tells this architecture from others in the checkpoint's owner."""
        plain = self.architecture.to_dict()
        # Where it comes from changes nothing in it.
        plain.pop("provenance", None)
        return {"genotype": plain}

    def _samples_seen(self) -> int:
        settings, samples = self.config.train, self.task.samples("train", "validation")
        return settings.epochs * samples_per_epoch(len(samples), settings.batch_size)

    def _head(self) -> TaskHead:
        return head_for(self.task.kind, self.config.train.threshold)
