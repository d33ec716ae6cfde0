"""The evaluation stage: a found or hand-made network, trained and tested once (spec section 7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError
from bmnas.machine.files import write_json
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Existing, Run, require_same
from bmnas.pipeline.training import (
    TrainResult,
    begin_training,
    misfit,
    read_training,
    run_training,
)
from bmnas.pipeline.unimodal import remove_stale
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.registry import load_architecture
from bmnas.tasks import check_task, check_test, reload_task
from bmnas.tasks.task import Task

_INHERITED = ("search", "seconds", "processor_seconds", "samples_per_second", "peak_memory")


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
    config = _with_recorded(config, path, task, recorded, own_backbones=backbones is not None)
    seed = int(recorded.get("seed", 0)) if seed is None else seed
    record = recorded.get("backbones") or {}
    if backbones is None:
        backbones = record.get("folder") or (origin if recorded else folder).backbones
    context = RunContext.choose(
        folder,
        task,
        config,
        seed,
        backbones=backbones,
        backbone_seed=record.get("seed"),
        runtime=runtime,
        progress=progress,
    )
    # A known fusion module as a genotype, which no search found, says its name.
    fusion = found.provenance.get("fusion")
    by_hand = {"fusion": fusion} if isinstance(fusion, str) else {}
    wanted = {"strategy": "none", **by_hand, **recorded, **context.record()}
    context.work(
        folder.network,
        lambda: _prepare(folder, origin, found, wanted, existing),
        lambda: run_training(context, found),
    )
    return read_training(folder, found)


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
    context = RunContext.choose(
        folder, task, config, seed, backbones=backbones, runtime=runtime, progress=progress
    )
    wanted = {"strategy": "none", "fusion": name, **context.record()}
    context.work(
        folder.network,
        lambda: _prepare_fusion(context, wanted, existing),
        lambda: run_training(context, fusion),
    )
    return read_training(folder, fusion)


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


def recorded_config(genotype: Path, task: Task) -> Config:
    """Return the configuration of the search that found ``genotype``, else the task's preset."""
    origin = Run(genotype.parent)
    if not origin.config.is_file():
        return config_for(task)
    recorded = origin.read_config()
    sections = {name: recorded.get(name, {}) for name in Config().to_dict()}
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
    """Return ``config``, with all but the settings of the training replaced by the search's.

    Those are facts of the run: another preset changes how the network is trained, and nothing else.
    """
    if config is None:
        return recorded_config(genotype, task)
    if not recorded:
        return config
    made_with = recorded_config(genotype, task)
    unimodal = config.unimodal if own_backbones else made_with.unimodal
    return dataclasses.replace(
        config, unimodal=unimodal, search=made_with.search, strategies=made_with.strategies
    )


def _prepare(
    folder: Run, origin: Run, genotype: Architecture, wanted: Mapping[str, Any], existing: Existing
) -> None:
    """Make ``folder`` ready to be trained in; raises UserError when it holds something else."""
    if folder.genotype.is_file() and load_architecture(folder.genotype) != genotype:
        raise UserError(
            f"{folder.path}: holds another genotype than the one given; choose another folder "
            "with --run"
        )
    if folder.config.is_file():
        require_same(folder, wanted, ("task", "seed"))
    if not begin_training(folder, wanted, existing):
        return
    write_json(folder.config, wanted)
    if not folder.genotype.is_file():
        # The cost of the search belongs to every network that comes out of it.
        folder.update_metrics(origin.read_metrics().only(*_INHERITED))
        # Last: killed in between, the next attempt comes here again.
        genotype.save(folder.genotype)


def _prepare_fusion(context: RunContext, wanted: Mapping[str, Any], existing: Existing) -> None:
    """Make the folder ready to be trained in; raises UserError when it holds something else."""
    folder = context.folder
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
    if begin_training(folder, wanted, existing):
        write_json(folder.config, wanted)
