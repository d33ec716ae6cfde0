"""The two trainings of the evaluation stage: one to be judged on validation, one to be kept."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bmnas.features.cache import FeatureCache, weights_hash
from bmnas.features.pairs import PairSamples, RawPairSamples, shown
from bmnas.features.samples import Samples, batches_per_epoch
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.distributed import broadcast, on_rank_zero
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, sha256_json, write_json
from bmnas.machine.runtime import seed_stage
from bmnas.machine.schema import plain, read
from bmnas.pipeline.context import RunContext, check_outputs
from bmnas.pipeline.importance import permutation_importance
from bmnas.pipeline.multimodal import (
    FUSION,
    WORDS,
    MultimodalNetwork,
    channels_of,
    forward_of,
    judged_pairs,
    raw_samples,
    read_rows,
)
from bmnas.pipeline.served_features import check_served_features
from bmnas.pipeline.unimodal import (
    Unimodal,
    folds_of,
)
from bmnas.report.metrics import ImportanceMetrics
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.space import NO_FUSION, NamedFusion
from bmnas.spaces.registry import build_fusion, space_of, takes_unimodal_logits
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Part, Task
from bmnas.training.fit import fit
from bmnas.training.heads import head_of
from bmnas.training.metrics import Forward, predict
from bmnas.training.mining import hardest
from bmnas.training.settings import Weighing
from bmnas.training.weighing import fit_weighing


def misfit(feature: str, task: Task, has: Iterable[str]) -> UserError:
    """Return the error for a genotype that reads a feature which ``task`` does not have."""
    return UserError(
        f"the genotype reads {feature}, task {task.name} has {', '.join(has)}: it was found for "
        "another task; give its own with --task"
    )


class FinalTraining:
    """The two trainings of an architecture: on train, to be judged on validation, then on both.

    The first says with which weights the members are added up, from which probability a label is
    given, how sure a network is to be of a region, and what each part is worth on samples that it
    has not learned from; a network whose answer is its fusion's alone and needs none of these has
    only the second. Backbones are trained along with a learning rate of their own, or stay as they
    are when the settings freeze them: then the feature cache is used.
    """

    def __init__(
        self, context: RunContext, architecture: Architecture, networks: Mapping[str, Unimodal]
    ) -> None:
        check_outputs(context.task, space_of(architecture))
        self.context, self.architecture = context, architecture
        self.backbones = backbones = {name: found.backbone for name, found in networks.items()}
        self.folds = folds_of(networks)
        self.head = context.head
        self.weighing: Weighing | None = None
        self.importance: ImportanceMetrics | None = None
        self.sharpness = 1.0
        #: What the first training took.
        self.judging_processor_seconds = 0.0
        self.channels = channels_of(backbones)
        for name in architecture.features if architecture.SEARCHED else ():
            if name not in self.channels:
                raise misfit(name, context.task, self.channels)
        self.no_fusion = isinstance(architecture, NamedFusion) and architecture.name == NO_FUSION
        adds = (context.adds_logits or context.adds_words) and (
            takes_unimodal_logits(architecture) or context.folder.genotype.is_file()
        )
        self.pairs = task_kind(context.task.kind).PAIRS
        if self.no_fusion and self.pairs and not context.config.train.freeze_backbones:
            raise UserError(
                f"fusion {NO_FUSION}: received backbones that are to be trained, which leave the "
                "words that their heads predict behind, expected --freeze-backbones"
            )
        if adds or self.no_fusion:
            own = [WORDS] if self.pairs else list(backbones)
            members = ([] if self.no_fusion else [FUSION]) + own
            self.weighing = Weighing(dict.fromkeys(members, 1.0))

    def judge(self) -> None:
        """Fit weights, threshold and sharpness to validation, unless that was done."""
        context, task = self.context, self.context.task
        wanted = self.head.lacks_threshold
        sharpens = self.head.sharpens and context.config.train.unimodal_logits
        if self.weighing is None and not wanted and not sharpens:
            return
        file, fingerprint = context.folder.judged, self._fingerprint("judged")
        if broadcast(not file.is_file() or read_json(file).get("fingerprint") != fingerprint):
            network, checkpoint = self._fit("judging", ("train",), context.folder.judge_checkpoint)
            device, samples = context.runtime.device, raw_samples(task, network, "validation")
            if self.pairs:
                logits, labels = judged_pairs(network, samples, device)
            else:
                forward = network if self.weighing is None else network.members
                logits, labels = predict(network, lambda inputs: forward(*inputs), samples, device)
            if self.weighing is not None:
                members = dict(zip(self.weighing.weights, logits.unbind(1), strict=True))
                self.weighing = fit_weighing(members, labels, self.head)
                if self.pairs:
                    self.weighing = _balanced(self.weighing, labels)
                network.weighing, logits = self.weighing, self.weighing.of(members)
            threshold = self.head.best_threshold(logits, labels) if wanted else self.head.threshold
            head, spent = head_of(task, threshold), checkpoint.processor_seconds
            sharpness = self.head.sharpness(logits, labels) if sharpens else 1.0

            def write() -> None:
                # The worth of a modality is measured on samples, of which a gallery has none.
                worth = (
                    None if self.pairs else permutation_importance(network, samples, head, device)
                )
                judged = _Judged(fingerprint, self.weighing, threshold, worth, spent, sharpness)
                write_json(file, plain(judged))

            on_rank_zero(write)
            checkpoint.remove()
        judged = read(_Judged, read_json(file), str(file))
        self.weighing, self.importance = judged.weighing, judged.importance
        self.judging_processor_seconds = judged.processor_seconds
        self.sharpness = judged.sharpness
        self.head = head_of(task, judged.threshold)
        alone = self.weighing is not None and FUSION not in self.weighing.weights
        if alone and not self.no_fusion:
            context.progress.note(
                "the unimodal networks' own logits do as well without the fusion network, which "
                "is left out"
            )
            search = context.config.search
            self.architecture = NamedFusion(NO_FUSION, search.channels, search.length)

    def fit(self) -> tuple[MultimodalNetwork, Checkpoint]:
        """Return the network, trained on train and validation, and what that took."""
        file = self.context.folder.train_checkpoint
        network, checkpoint = self._fit("training", ("train", "validation"), file)
        if self.sharpness != 1:
            network.fusion.sharpen(self.sharpness)
        return network, checkpoint

    def _fit(
        self, stage: str, parts: tuple[Part, ...], file: Path
    ) -> tuple[MultimodalNetwork, Checkpoint]:
        context, settings = self.context, self.context.config.train
        task, runtime = context.task, context.runtime
        history = context.folder.training if "validation" in parts else None
        checkpoint = Checkpoint(file, self._fingerprint(stage), history)
        seed_stage(context.seed, "train")
        fusion = build_fusion(
            self.architecture, self.channels, classes=task.outputs, dropout=settings.dropout
        )
        network = MultimodalNetwork(
            self.backbones, fusion, self.weighing, settings.modality_dropout
        ).to(runtime.device)
        steps = settings.epochs * batches_per_epoch(len(task.samples(*parts)), settings.batch_size)
        samples: Samples
        trained: Fusion | MultimodalNetwork
        forward: Forward
        cache: FeatureCache | None = None
        with checkpoint.meter.stage("train"):
            if not settings.freeze_backbones:
                samples, trained = raw_samples(task, network, *parts, training=True), network
                if settings.gradient_checkpointing:
                    _checkpoint_gradients(network)
                    steps = 0  # what is computed again is not compiled
                forward = forward_of(network, runtime, steps)
            elif fusion.features:
                # Frozen backbones have nothing to learn: the fusion is trained as if it were alone.
                cache = context.features(self.backbones, parts, fusion.length, folds=self.folds)
                cache = cache.on(runtime.device, fusion.features)
                samples = shown(task, cache.samples(*parts))
                trained, forward = network.fusion, runtime.compiled(network.fusion, steps)
            else:
                return network, checkpoint
            if settings.negatives and isinstance(samples, PairSamples | RawPairSamples):
                samples.wrong.find = functools.partial(self._hardest, network, samples)
            fit(
                trained,
                runtime.mixed(forward, settings.precision, context.progress),
                samples,
                self.head,
                settings.recipe,
                checkpoint=checkpoint,
                progress=context.progress,
                stage=stage,
                loss=functools.partial(trained.loss, self.head),
            )
        if cache is not None:
            check_served_features(network, cache, self.folds)
        return network, checkpoint

    def _hardest(self, network: MultimodalNetwork, samples: PairSamples | RawPairSamples) -> Tensor:
        """Return the wrong pairs that ``samples`` are shown with, see ``hardest``."""
        if isinstance(samples, RawPairSamples):
            read = read_rows(network, samples, self.context.runtime.device)
        else:
            read = samples
        return hardest(network.fusion, read, self.context.config.train.negatives)

    def _fingerprint(self, stage: str) -> str:
        return sha256_json(
            {
                "stage": stage,
                "genotype": self.architecture.content(),
                "train": dataclasses.asdict(self.context.config.train),
                "seed": self.context.seed,
                "backbones": {n: weights_hash(backbone) for n, backbone in self.backbones.items()},
                **({} if self.head.class_weights is None else {"weights": self.head.class_weights}),
            }
        )


def _balanced(weighing: Weighing, labels: Tensor) -> Weighing:
    """Return ``weighing`` for pairs of which half match, as those of a training count.

    It was fitted to the ``labels`` (n, 3) of a gallery, where few do, each counted twice. The bias
    alone changes, and no rank with it (Elkan, 2001).
    """
    right = 2 * int((labels[:, 0] > 0).sum())
    wrong = max(1, int((labels[:, 0] == 0).sum()))
    return dataclasses.replace(weighing, bias=weighing.bias + math.log(wrong / right))


def _checkpoint_gradients(network: MultimodalNetwork) -> None:
    """Have every backbone that can compute layers again do so; raises UserError without one."""
    able = [name for name in network.modalities if network.backbone(name).checkpoint_gradients()]
    if not able:
        raise UserError(
            f"gradient_checkpointing: none of the backbones of {', '.join(network.modalities)} can "
            "compute its layers again, expected one of transformers ('hf:…'): leave it out"
        )


@dataclass(frozen=True)
class _Judged:
    """The file judged.json."""

    fingerprint: str
    weighing: Weighing | None = None
    threshold: float | None = None
    importance: ImportanceMetrics | None = None
    processor_seconds: float = 0.0
    sharpness: float = 1.0
