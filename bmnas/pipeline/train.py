"""The evaluation stage: a found or hand-made network, trained and tested once (spec section 7)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bmnas.features.cache import weights_hash
from bmnas.features.samples import Samples, batches_per_epoch, label_tensor, samples_per_epoch
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import COMPILE
from bmnas.machine.distributed import broadcast, on_rank_zero
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, sha256_json, write_json
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime, seed_stage
from bmnas.machine.schema import plain, read
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.multimodal import (
    FUSION,
    MultimodalNetwork,
    channels_of,
    evaluate_fusion,
    forward_of,
    parameter_counts,
    raw_samples,
    torch_latency,
)
from bmnas.pipeline.run_folder import Existing, Run, require_same
from bmnas.pipeline.search import write_pictures
from bmnas.pipeline.trained import TaskInfo, TrainedNetwork
from bmnas.pipeline.unimodal import (
    Unimodal,
    evaluate_unimodal,
    folds_of,
    remove_stale,
    unimodal_networks,
)
from bmnas.report.metrics import MemoryPeak, RunMetrics, TrainedMetrics, UnimodalMetrics
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.space import NO_FUSION, NamedFusion
from bmnas.spaces.registry import build_fusion, load_architecture, takes_unimodal_logits
from bmnas.tasks import check_task, check_test, reload_task
from bmnas.tasks.task import Part, Task
from bmnas.training.fit import fit
from bmnas.training.heads import head_for
from bmnas.training.metrics import Forward, predict
from bmnas.training.settings import Weighing
from bmnas.training.weighing import fit_weighing

_INHERITED = ("search", "seconds", "processor_seconds", "samples_per_second", "peak_memory")


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


def train(
    genotype: str | Path,
    task: Task | None = None,
    *,
    run: str | Path | None = None,
    config: Config | None = None,
    seed: int | None = None,
    existing: Existing = "refuse",
    backbones: str | Path | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the network of the file ``genotype`` on train and validation, and test it once.

    Backbones and fusion network are trained together; with ``freeze_backbones`` in
    ``config.train`` the fusion network alone, on the feature cache. ``run`` is by default the
    genotype's folder; task, configuration and seed are by default those of its search. Raises
    UserError when something given cannot be used.
    """
    path = Path(genotype)
    found = load_architecture(path)
    origin = Run(path.parent)
    folder = origin if run is None else Run(Path(run))
    recorded = origin.read_config() if origin.config.is_file() else {}
    if task is None:
        task = reload_task(origin.read_source(path))
    check_task(task)
    check_test(task)
    _check_features(found, task)
    if config is None:
        config = recorded_config(path, task)
    elif recorded:
        # Facts of the run: another preset changes how the network is trained, and nothing else.
        made_with = recorded_config(path, task)
        config = dataclasses.replace(
            config,
            unimodal=made_with.unimodal if backbones is None else config.unimodal,
            search=made_with.search,
            strategies=made_with.strategies,
        )
    record = recorded.get("backbones") or {}
    context = RunContext(
        folder,
        task,
        config,
        int(recorded.get("seed", 0)) if seed is None else seed,
        backbones=backbones or record.get("folder") or (origin if recorded else folder).backbones,
        backbone_seed=record.get("seed"),
        runtime=runtime,
        progress=progress,
    )
    # A known fusion module as a genotype, which no search found, says its name.
    fusion = found.provenance.get("fusion")
    by_hand = {"fusion": fusion} if isinstance(fusion, str) else {}
    wanted = {"strategy": "none", **by_hand, **recorded, **context.record()}
    return _run(context, found, origin, wanted, existing)


def train_fusion(
    name: str,
    task: Task,
    *,
    run: str | Path | None = None,
    config: Config | None = None,
    seed: int = 0,
    existing: Existing = "refuse",
    backbones: str | Path | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the hand-made fusion ``name`` on train and validation, and test it once.

    ``name`` is in ``spaces.fusions.table.FUSIONS``. Its channels C and length L are those that
    ``config`` (default: the preset that the task names) gives to a search; it is trained as a
    found network is. ``run`` is by default ``runs/<task>-<name>``; ``backbones`` is the folder of
    trained backbones and feature cache, by default inside ``run``. Raises UserError when
    something given cannot be used.
    """
    check_task(task)
    check_test(task)
    config = config_for(task) if config is None else config
    fusion = NamedFusion(name, config.search.channels, config.search.length)
    folder = Run(Path("runs") / f"{task.name}-{name}" if run is None else Path(run))
    context = RunContext(
        folder, task, config, seed, backbones=backbones, runtime=runtime, progress=progress
    )
    wanted = {"strategy": "none", "fusion": name, **context.record()}
    return _run(context, fusion, folder, wanted, existing)


def recorded_config(genotype: Path, task: Task) -> Config:
    """Return the configuration of the search that found ``genotype``, else the task's preset."""
    origin = Run(genotype.parent)
    if not origin.config.is_file():
        return config_for(task)
    recorded = origin.read_config()
    sections = {name: recorded.get(name, {}) for name in Config().to_dict()}
    config = Config.from_dict(sections, str(origin.config))
    return dataclasses.replace(config, preset=recorded.get("preset"))


def _run(
    context: RunContext,
    architecture: Architecture,
    origin: Run,
    wanted: Mapping[str, Any],
    existing: Existing,
) -> TrainResult:
    folder = context.folder
    context.work(
        folder.network,
        lambda: _prepare(context, architecture, origin, wanted, existing),
        lambda: _train(context, architecture),
    )
    metrics = folder.read_metrics()
    if metrics.test is None:
        raise UserError(f"{folder.path}: holds no finished training; start anew with --overwrite")
    return TrainResult(folder.path, folder.network, architecture, metrics.to_dict())


def _prepare(
    context: RunContext,
    architecture: Architecture,
    origin: Run,
    wanted: Mapping[str, Any],
    existing: Existing,
) -> None:
    """Make the folder ready to be trained in; raises UserError when it holds something else."""
    folder = context.folder
    searched = architecture.SEARCHED or wanted["strategy"] != "none"
    if searched:
        if folder.genotype.is_file() and load_architecture(folder.genotype) != architecture:
            raise UserError(
                f"{folder.path}: holds another genotype than the one given; choose another folder "
                "with --run"
            )
        if folder.config.is_file():
            require_same(folder, wanted, ("task", "seed"))
    else:
        if existing == "overwrite" and not context.shares_backbones:
            # Before the run's own files: killed in between, --overwrite does the rest.
            remove_stale(context)
        for file in (folder.genotype, folder.checkpoint):
            if file.is_file():
                raise UserError(
                    f"{file}: belongs to a search, expected a folder for the fusion "
                    f"{wanted['fusion']}; choose another one with --run"
                )
        if existing != "overwrite" and folder.config.is_file() and folder.begun():
            require_same(folder, wanted, ("task", "seed", "fusion", "search"))
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
        return
    write_json(folder.config, wanted)
    if searched and not folder.genotype.is_file():
        # The cost of the search belongs to every network that comes out of it.
        folder.update_metrics(origin.read_metrics().only(*_INHERITED))
        # Last: killed in between, the next attempt comes here again.
        architecture.save(folder.genotype)


def _check_features(genotype: Architecture, task: Task) -> None:
    """Raise UserError when ``task`` cannot have the features of ``genotype``.

    What a modality's features are called is known before its backbone only where the task says so.
    """
    known = {
        modality.name: [path.partition(":")[0] for path in modality.features]
        for modality in task.modalities
    }
    for name in genotype.features:
        modality, _, feature = name.partition(".")
        if modality not in known or (known[modality] and feature not in known[modality]):
            has = [f"{m}.{f}" for m, features in known.items() for f in features or ("1, …",)]
            raise _misfit(name, task, has)


def _misfit(feature: str, task: Task, has: Iterable[str]) -> UserError:
    """Return the error for a genotype that reads a feature which ``task`` does not have."""
    return UserError(
        f"the genotype reads {feature}, task {task.name} has {', '.join(has)}: it was found for "
        "another task; give its own with --task"
    )


def _train(context: RunContext, architecture: Architecture) -> None:
    """Train, test and leave the network's file, which says that all is done."""
    task, runtime = context.task, context.runtime
    networks = unimodal_networks(context)
    stage = _Stage(context, architecture, networks)
    stage.judge()
    network, checkpoint = stage.fit()
    head = stage.head
    # Before test and latency, which are no training.
    seconds, costs = checkpoint.seconds, checkpoint.meter.to_dict()
    test = evaluate_fusion(task, network, "test", head, runtime)
    alone = {
        name: evaluate_unimodal(context, name, found.backbone, "test")
        for name, found in networks.items()
    }
    samples, settings = task.samples("test"), context.config.train
    labels = label_tensor(task, samples)
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
            unimodal_mean=head.score(mean, labels),
            calibration_error=head.calibration_error(test.logits, labels),
        ),
        weighing=network.weighing,
        parameters=parameter_counts(network),
        seconds={"train": seconds, "train_compile": costs["seconds"].get(COMPILE, 0.0)},
        # Frozen backbones alone had nothing to learn.
        samples_per_second=(
            {"train": settings.epochs * seen / costs["seconds"]["train"]}
            if network.features or not settings.freeze_backbones
            else {}
        ),
        peak_memory={"train": MemoryPeak(**costs["peak_memory"])},
    )
    on_rank_zero(lambda: _write(context, stage, network, measured))
    checkpoint.remove()


def _write(
    context: RunContext, stage: _Stage, network: MultimodalNetwork, measured: RunMetrics
) -> None:
    """Write metrics and pictures, then the network, with which the training is finished."""
    task, folder, found = context.task, context.folder, stage.architecture
    latency = torch_latency(task, network, context.runtime)
    folder.update_metrics(dataclasses.replace(measured, latency=latency))
    write_pictures(folder, found if found.SEARCHED else None, context.progress)
    info = TaskInfo(task.name, task.kind, task.class_names, stage.head.threshold, task.source)
    dropout = context.config.train.dropout
    TrainedNetwork(network.cpu(), found, info, dropout).save(folder.network)


class _Stage:
    """The two trainings of an architecture: on train, to be judged on validation, then on both.

    The first says with which weights the members are added up, and from which probability a label
    is given; a network whose answer is its fusion's alone and needs no threshold has only the
    second. Backbones are trained along with a learning rate of their own, or stay as they are when
    the settings freeze them: then the feature cache is used.
    """

    def __init__(
        self, context: RunContext, architecture: Architecture, networks: Mapping[str, Unimodal]
    ) -> None:
        self.context, self.architecture = context, architecture
        self.backbones = backbones = {name: found.backbone for name, found in networks.items()}
        self.folds = folds_of(networks)
        self.head = context.head
        self.weighing: Weighing | None = None
        self.channels = channels_of(backbones)
        for name in architecture.features if architecture.SEARCHED else ():
            if name not in self.channels:
                raise _misfit(name, context.task, self.channels)
        self.no_fusion = isinstance(architecture, NamedFusion) and architecture.name == NO_FUSION
        adds = context.config.train.unimodal_logits and (
            takes_unimodal_logits(architecture) or context.folder.genotype.is_file()
        )
        if adds or self.no_fusion:
            members = ([] if self.no_fusion else [FUSION]) + list(backbones)
            self.weighing = Weighing(dict.fromkeys(members, 1.0))

    def judge(self) -> None:
        """Fit the weights and the threshold to validation, unless that was done."""
        context, task = self.context, self.context.task
        wanted = self.head.threshold is None and self.head.decision == "threshold"
        if self.weighing is None and not wanted:
            return
        file, fingerprint = context.folder.judged, self._fingerprint("judged")
        if broadcast(not file.is_file() or read_json(file).get("fingerprint") != fingerprint):
            network, checkpoint = self._fit("judging", ("train",), context.folder.judge_checkpoint)
            forward = network if self.weighing is None else network.members
            logits, labels = predict(
                network,
                lambda inputs: forward(*inputs),
                raw_samples(task, network, "validation"),
                context.runtime.device,
            )
            if self.weighing is not None:
                members = dict(zip(self.weighing.weights, logits.unbind(1), strict=True))
                self.weighing = fit_weighing(members, labels, self.head)
                logits = self.weighing.of(members)
            threshold = self.head.best_threshold(logits, labels) if wanted else self.head.threshold
            judged = _Judged(fingerprint, self.weighing, threshold)
            on_rank_zero(lambda: write_json(file, plain(judged)))
            checkpoint.remove()
        judged = read(_Judged, read_json(file), str(file))
        self.weighing = judged.weighing
        self.head = head_for(task.kind, judged.threshold)
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
        return self._fit("training", ("train", "validation"), self.context.folder.train_checkpoint)

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
        network = MultimodalNetwork(self.backbones, fusion, self.weighing).to(runtime.device)
        steps = settings.epochs * batches_per_epoch(len(task.samples(*parts)), settings.batch_size)
        samples: Samples
        trained: Fusion | MultimodalNetwork
        forward: Forward
        with checkpoint.meter.stage("train"):
            if not settings.freeze_backbones:
                samples, trained = raw_samples(task, network, *parts), network
                forward = forward_of(network, runtime, steps)
            elif fusion.features:
                # Frozen backbones have nothing to learn: the fusion is trained as if it were alone.
                cache = context.features(self.backbones, parts, fusion.length, folds=self.folds)
                samples = cache.on(runtime.device, fusion.features).samples(*parts)
                trained, forward = fusion, runtime.compiled(fusion, steps)
            else:
                return network, checkpoint
            fit(
                trained,
                forward,
                samples,
                self.head,
                settings.recipe,
                checkpoint=checkpoint,
                progress=context.progress,
                stage=stage,
                loss=functools.partial(trained.loss, self.head),
            )
        return network, checkpoint

    def _fingerprint(self, stage: str) -> str:
        # Where a genotype comes from changes nothing in it.
        found = self.architecture.to_dict()
        architecture = {k: v for k, v in found.items() if k != "provenance"}
        return sha256_json(
            {
                "stage": stage,
                "genotype": architecture,
                "train": dataclasses.asdict(self.context.config.train),
                "seed": self.context.seed,
                "backbones": {n: weights_hash(backbone) for n, backbone in self.backbones.items()},
            }
        )


@dataclass(frozen=True)
class _Judged:
    """The file judged.json."""

    fingerprint: str
    weighing: Weighing | None = None
    threshold: float | None = None
