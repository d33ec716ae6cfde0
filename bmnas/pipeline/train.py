"""The evaluation stage: a found or hand-made network, trained and tested once (spec section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bmnas.features.samples import label_tensor, nothing_of, samples_per_epoch
from bmnas.machine.costs import COMPILE
from bmnas.machine.distributed import on_rank_zero
from bmnas.machine.errors import UserError
from bmnas.machine.files import write_json
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.context import RunContext, worded
from bmnas.pipeline.final_training import FinalTraining, misfit
from bmnas.pipeline.multimodal import (
    WORDS,
    MultimodalNetwork,
    channels_of,
    evaluate_fusion,
    parameter_counts,
    torch_latency,
)
from bmnas.pipeline.run_folder import Existing, Run, require_same
from bmnas.pipeline.search import write_pictures
from bmnas.pipeline.trained import TaskInfo, TrainedNetwork
from bmnas.pipeline.unimodal import (
    Unimodal,
    evaluate_unimodal,
    of_all_samples,
    remove_stale,
    unimodal_networks,
)
from bmnas.report.metrics import (
    MOST_CLASSES,
    GalleryMetrics,
    MemoryPeak,
    RunMetrics,
    TrainedMetrics,
    UnimodalMetrics,
)
from bmnas.report.predictions import write_predictions
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.fusions.space import NO_FUSION, NamedFusion
from bmnas.spaces.registry import build_fusion, load_architecture, space_of
from bmnas.tasks import check_task, check_test, notes, reload_task
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Part, Task
from bmnas.training.heads import TaskHead, head_of
from bmnas.training.metrics import Evaluation
from bmnas.training.settings import Weighing, as_read

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
    task = worded(task, space_of(found), found.features)
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
    _check_limits(recorded, config, path)
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
        return config_for(task, space=space_of(load_architecture(genotype)))
    recorded = origin.read_config()
    sections = {name: as_read(recorded.get(name, {})) for name in Config().to_dict()}
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


def _check_limits(recorded: Mapping[str, Any], config: Config, genotype: Path) -> None:
    """Raise UserError where unimodal logits would be more than the search had room for."""
    kept = as_read(recorded.get("train", {})).get("unimodal_logits", False)
    target = recorded.get("target")
    if target and config.train.unimodal_logits and not kept:
        if not any(name.startswith("max_") for name in target):
            raise UserError(
                f"{genotype}: this point of the front was judged without unimodal logits, expected "
                "a training without them: leave out --unimodal-logits and --preset"
            )
        raise UserError(
            f"{genotype}: its search had no room for unimodal logits within its limits; leave out "
            "--unimodal-logits, or search again without limits"
        )


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
            raise misfit(name, task, has)


def _train(context: RunContext, architecture: Architecture) -> None:
    """Train, test and leave the network's file, which says that all is done."""
    task, runtime = context.task, context.runtime
    for note in notes(task, "validation", "test"):
        context.progress.note(note)
    networks = unimodal_networks(context)
    stage = FinalTraining(context, architecture, networks)
    stage.judge()
    network, checkpoint = stage.fit()
    head = stage.head
    # Before test and latency, which are no training.
    seconds, costs = checkpoint.seconds, checkpoint.meter.to_dict()
    processor = stage.judging_processor_seconds + checkpoint.processor_seconds
    test = evaluate_fusion(task, network, "test", head, runtime)
    alone = {
        name: evaluate_unimodal(context, name, found.backbone, "test")
        for name, found in networks.items()
    }
    without = {
        name: evaluate_fusion(task, network, "test", head, runtime, {name: nothing_of}).score
        for name in network.optional
    }
    samples, settings = task.samples("test"), context.config.train
    labels = test.labels
    assert labels is not None
    seen = samples_per_epoch(len(task.samples("train", "validation")), settings.batch_size)
    few_classes = task.classes <= MOST_CLASSES
    measured = RunMetrics(
        metric=head.metric,
        unimodal={
            name: UnimodalMetrics(
                found.validation, alone[name].score, found.parameters, context.own_metric
            )
            for name, found in networks.items()
        },
        test=TrainedMetrics(
            score=test.score,
            loss=test.loss,
            samples=len(samples),
            unimodal_mean=(
                _words_score(context, networks)
                if context.adds_words
                else _mean_score(context, networks, alone)
            ),
            calibration_error=head.calibration_error(test.logits, labels),
            macro_f1=head.macro_f1(test.logits, labels),
            by_type=_by_type(task, head, test.logits),
            details=head.details(test.logits, labels),
            without=without,
            gallery=_gallery(context, labels),
            confusion=head.confusion(test.logits, labels) if few_classes else None,
        ),
        weighing=network.weighing,
        importance=stage.importance,
        parameters=parameter_counts(network),
        seconds={"train": seconds, "train_compile": costs["seconds"].get(COMPILE, 0.0)},
        processor_seconds={"train": processor},
        # Frozen backbones alone had nothing to learn.
        samples_per_second=(
            {"train": settings.epochs * seen / costs["seconds"]["train"]}
            if network.features or not settings.freeze_backbones
            else {}
        ),
        peak_memory={"train": MemoryPeak(**costs["peak_memory"])},
    )
    table = head.columns(test.logits, labels)

    def write() -> None:
        if table:
            write_predictions(context.folder.predictions, task, table)
        _write(context, stage, network, measured)

    on_rank_zero(write)
    checkpoint.remove()


def _gallery(context: RunContext, labels: Tensor) -> GalleryMetrics | None:
    """Return the size of a gallery from its ``labels`` (n, 3); a note says where it is cut."""
    task = context.task
    if not task_kind(task.kind).PAIRS:
        return None
    names = [modality.name for modality in task.modalities]
    rows = dict(zip(names, (labels[:, 1:].amax(0) + 1).tolist(), strict=True))
    test = task.samples("test")
    of = {name: len(np.unique(task.modality(name).rows_of(test))) for name in names}
    if rows != of:
        found, whole = (" x ".join(f"{n:,}" for n in sizes.values()) for sizes in (rows, of))
        context.progress.note(
            f"tested on a gallery of {found} rows, evenly spaced groups of the {whole} that there "
            "are: its recalls are higher than those of all"
        )
    return GalleryMetrics(rows, of)


def _words_score(context: RunContext, networks: Mapping[str, Unimodal]) -> float:
    """Return the test score of a matching that needs no training: the words of both alone."""
    backbones = {name: found.backbone for name, found in networks.items()}
    fusion = build_fusion(
        NamedFusion(NO_FUSION, 1, 1),
        channels_of(backbones),
        classes=context.task.outputs,
        dropout=0,
    )
    network = MultimodalNetwork(backbones, fusion, Weighing({WORDS: 1.0}))
    return evaluate_fusion(context.task, network, "test", context.head, context.runtime).score


def _mean_score(
    context: RunContext, networks: Mapping[str, Unimodal], alone: Mapping[str, Evaluation]
) -> float | None:
    """Return the test score of a fusion that needs no training: the mean of unimodal logits.

    ``alone`` are the networks on test; validation says from which probability a label is given.
    """
    if context.learns_words:
        return None
    task, head = context.task, context.head

    def mean(part: Part, each: Mapping[str, Evaluation]) -> Tensor:
        whole = [of_all_samples(task, name, part, found.logits) for name, found in each.items()]
        return torch.stack(whole).mean(0)

    if head.lacks_threshold:
        part: Part = "validation"
        seen = {
            name: evaluate_unimodal(context, name, found.backbone, part)
            for name, found in networks.items()
        }
        labels = label_tensor(task, task.samples(part))
        head = head_of(task, head.best_threshold(mean(part, seen), labels))
    return head.score(mean("test", alone), label_tensor(task, task.samples("test")))


def _by_type(task: Task, head: TaskHead, logits: Tensor) -> dict[str, float]:
    """Return the score of each type of test samples, of which ``logits`` (n, K) are all."""
    if task.types is None or task_kind(task.kind).PAIRS:
        return {}
    samples = task.samples("test")
    labels, types = label_tensor(task, samples), task.types[samples]
    found = {name: torch.from_numpy(types == name) for name in np.unique(types).tolist()}
    return {name: head.score(logits[own], labels[own]) for name, own in found.items()}


def _write(
    context: RunContext, stage: FinalTraining, network: MultimodalNetwork, measured: RunMetrics
) -> None:
    """Write metrics and pictures, then the network, with which the training is finished."""
    task, folder, found = context.task, context.folder, stage.architecture
    latency = torch_latency(task, network, context.runtime)
    folder.update_metrics(dataclasses.replace(measured, latency=latency))
    write_pictures(folder, found if found.SEARCHED else None, context.progress)
    head = stage.head
    sources = {m.name: m.source for m in task.modalities if m.source is not None}
    info = TaskInfo(
        task.name,
        task.kind,
        task.class_names,
        head.threshold,
        task.source,
        head.scale,
        sources or None,
    )
    dropout = context.config.train.dropout
    TrainedNetwork(network.cpu(), found, info, dropout).save(folder.network)
