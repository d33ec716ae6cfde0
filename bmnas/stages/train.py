"""The evaluation stage: the network of a genotype, trained afresh, tested once (spec section 7)."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmnas.backbones import Backbone
from bmnas.checkpoint import Checkpoint
from bmnas.config import Config, load_preset
from bmnas.cost import hardware, parameter_counts, versions
from bmnas.errors import UserError
from bmnas.features import weights_hash
from bmnas.files import write_json
from bmnas.genotype import Genotype
from bmnas.joint import channels_of, evaluate_fusion, fit_fusion, torch_latency
from bmnas.metrics import Objective
from bmnas.network import FusionNetwork, MultimodalNetwork
from bmnas.parallel.ranks import agreed, first, size
from bmnas.parallel.writing import held, shown_by_writer
from bmnas.progress import Progress
from bmnas.runs import Existing, Run, require_same
from bmnas.runtime import Runtime, check_seed, seed_stage
from bmnas.samples import samples_per_epoch
from bmnas.spent import COMPILE
from bmnas.stages.search import backbones_record, write_pictures
from bmnas.stages.unimodal import score_unimodal, unimodal_networks
from bmnas.tasks import check_task, check_test, reload_task
from bmnas.tasks.task import Task
from bmnas.trained import TaskInfo, TrainedNetwork

_INHERITED = ("search", "seconds", "samples_per_second", "peak_memory")


@dataclass(frozen=True)
class TrainResult:
    """A trained network: its folder and file, the genotype, and ``metrics`` as in the file."""

    run: Path
    network: Path
    genotype: Genotype
    metrics: Mapping[str, Any]

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
    found = Genotype.load(path)
    origin = Run(path.parent)
    folder = origin if run is None else Run(Path(run))
    recorded = origin.read_config() if origin.config.is_file() else {}
    if task is None:
        if not recorded:
            raise UserError(
                f"{path}: lies in no run folder that says which task it is for; name the task "
                "with --task"
            )
        task = reload_task(recorded["task"]["source"])
    check_task(task)
    check_test(task)
    _check_features(found, task)
    config = _with_recorded(config, path, task, recorded, own_backbones=backbones is not None)
    seed = int(recorded.get("seed", 0)) if seed is None else seed
    check_seed(seed)
    runtime = Runtime.choose() if runtime is None else runtime
    kept, backbone_seed = _backbones(origin, folder, recorded, backbones, seed)
    with held(folder.path, kept):
        wanted = {
            "strategy": "none",
            **recorded,
            "preset": config.preset,
            "task": {"name": task.name, "source": task.source},
            "seed": seed,
            **config.to_dict(),
            "backbones": backbones_record(folder, kept, backbone_seed),
            "versions": versions(),
            "hardware": {**hardware(runtime.device), "processes": size()},
        }
        first(lambda: _prepare(folder, origin, found, wanted, existing))
        if not agreed(folder.network.is_file()):
            shown = shown_by_writer(progress)
            training = _Training(folder, kept, found, task, config, seed, runtime, shown)
            training.run(backbone_seed)
    metrics = folder.read_metrics()
    if "test" not in metrics:
        raise UserError(f"{folder.path}: holds no finished training; start anew with --overwrite")
    return TrainResult(folder.path, folder.network, found, metrics)


def _check_features(genotype: Genotype, task: Task) -> None:
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
    return UserError(
        f"the genotype reads {feature}, task {task.name} has {', '.join(has)}: it was found for "
        "another task; give its own with --task"
    )


def recorded_config(genotype: Path, task: Task) -> Config:
    """Return the configuration of the search that found ``genotype``, else the task's preset."""
    origin = Run(genotype.parent)
    if not origin.config.is_file():
        return load_preset(task.preset)
    recorded = origin.read_config()
    sections = {name: recorded.get(name, {}) for name in ("unimodal", "search", "train")}
    config = Config.from_dict(sections, str(origin.config))
    return dataclasses.replace(config, preset=recorded.get("preset"))


def _with_recorded(
    config: Config | None,
    genotype: Path,
    task: Task,
    recorded: Mapping[str, Any],
    *,
    own_backbones: bool,
) -> Config:
    """Return ``config`` with the search and unimodal settings that ``genotype`` was found with.

    Those are facts of the run: another preset changes how the network is trained, no more.
    """
    if config is not None and not recorded:
        return config
    made_with = recorded_config(genotype, task)
    if config is None:
        return made_with
    unimodal = config.unimodal if own_backbones else made_with.unimodal
    return dataclasses.replace(config, search=made_with.search, unimodal=unimodal)


def _backbones(
    origin: Run,
    folder: Run,
    recorded: Mapping[str, Any],
    asked: str | Path | None,
    seed: int,
) -> tuple[Path, int]:
    """Return the folder of the backbones, those of the search by default, and their seed."""
    record = recorded.get("backbones") or {}
    backbone_seed = int(record.get("seed", seed))
    if asked is not None:
        return Path(asked), backbone_seed
    if not recorded:
        return folder.backbones, backbone_seed
    return Path(record.get("folder") or origin.backbones), backbone_seed


def _prepare(
    folder: Run, origin: Run, genotype: Genotype, wanted: Mapping[str, Any], existing: Existing
) -> None:
    """Make ``folder`` ready to be trained in; raises UserError when it holds something else."""
    if folder.genotype.is_file() and Genotype.load(folder.genotype) != genotype:
        raise UserError(
            f"{folder.path}: holds another genotype than the one given; choose another folder "
            "with --run"
        )
    if folder.config.is_file():
        require_same(folder, wanted, ("task", "seed"))
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
    if not folder.genotype.is_file():
        # The cost of the search belongs to every network that comes out of it.
        inherited = origin.read_metrics()
        folder.update_metrics({key: inherited[key] for key in _INHERITED if key in inherited})
        # Last: killed in between, the next attempt comes here again.
        genotype.save(folder.genotype)


@dataclass(frozen=True)
class _Training:
    """One training in a folder that is ready for it."""

    folder: Run
    kept: Path
    genotype: Genotype
    task: Task
    config: Config
    seed: int
    runtime: Runtime
    progress: Progress

    def run(self, backbone_seed: int) -> None:
        """Train, test and leave the network's file, which says that all is done."""
        task, runtime, objective = self.task, self.runtime, self._objective()
        networks = unimodal_networks(
            task,
            self.config.unimodal,
            objective,
            seed=backbone_seed,
            folder=self.kept,
            runtime=runtime,
            progress=self.progress,
        )
        # MultimodalNetwork cuts them, and their own heads are still to be tested.
        backbones = {name: copy.deepcopy(found.backbone) for name, found in networks.items()}
        network, checkpoint = self._fit(backbones, objective)
        # Before test and latency, which are no training.
        seconds, spent = checkpoint.seconds, checkpoint.spent.to_dict()
        test = evaluate_fusion(task, network, "test", objective, runtime)
        unimodal = {
            name: {
                "validation": found.validation,
                "test": score_unimodal(task, name, found.backbone, "test", objective, runtime),
                "parameters": found.parameters,
            }
            for name, found in networks.items()
        }
        measured = {
            "metric": objective.metric,
            "unimodal": unimodal,
            "test": {
                "score": test.score,
                "loss": test.loss,
                "samples": len(task.samples("test")),
            },
            "parameters": parameter_counts(network),
            "seconds": {"train": seconds, "train_compile": spent["seconds"][COMPILE]},
            "samples_per_second": {"train": self._samples_seen() / spent["seconds"]["train"]},
            "peak_memory": {"train": spent["peak_memory"]},
        }
        first(lambda: self._write(network, measured, objective))
        checkpoint.remove()

    def _write(
        self, network: MultimodalNetwork, measured: Mapping[str, Any], objective: Objective
    ) -> None:
        task = self.task
        latency = torch_latency(task, network, self.runtime)
        self.folder.update_metrics({**measured, "latency": latency})
        write_pictures(self.folder, self.genotype, self.progress)
        info = TaskInfo(
            name=task.name,
            kind=task.kind,
            class_names=task.class_names,
            threshold=objective.threshold if task.kind == "multilabel" else None,
            source=task.source,
        )
        dropout = self.config.train.dropout
        TrainedNetwork(network.cpu(), self.genotype, info, dropout).save(self.folder.network)

    def _fit(
        self, backbones: dict[str, Backbone], objective: Objective
    ) -> tuple[MultimodalNetwork, Checkpoint]:
        settings = self.config.train
        channels = channels_of(backbones)
        missing = [name for name in self.genotype.features if name not in channels]
        if missing:
            raise _misfit(missing[0], self.task, channels)
        depends = {
            "genotype": self.genotype.to_dict()["cells"],
            "train": dataclasses.asdict(settings),
            "seed": self.seed,
            "backbones": {name: weights_hash(backbone) for name, backbone in backbones.items()},
        }
        owner = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        checkpoint = Checkpoint(self.folder.train_checkpoint, owner, self.folder.training)
        seed_stage(self.seed, "train")
        fusion = FusionNetwork(
            self.genotype, channels, classes=self.task.classes, dropout=settings.dropout
        )
        with checkpoint.spent.stage("train"):
            network = fit_fusion(
                self.task,
                backbones,
                fusion,
                settings,
                objective,
                features=self.kept / "features",
                cache_dtype=self.config.search.cache_dtype,
                runtime=self.runtime,
                checkpoint=checkpoint,
                progress=self.progress,
            )
        return network, checkpoint

    def _samples_seen(self) -> int:
        settings, samples = self.config.train, self.task.samples("train", "validation")
        return settings.epochs * samples_per_epoch(len(samples), settings.batch_size)

    def _objective(self) -> Objective:
        return Objective(self.task.kind, self.config.train.threshold)
