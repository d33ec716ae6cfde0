"""The evaluation stage of a hand-made fusion: no search, the same training (spec section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmnas.machine.costs import hardware, versions
from bmnas.machine.distribution.ranks import agreed, first, size
from bmnas.machine.distribution.writing import lock_folders, shown_by_writer
from bmnas.machine.errors import UserError
from bmnas.machine.files import write_json
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime, check_seed
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.run_folder import Existing, Run, require_same
from bmnas.pipeline.search import backbones_record
from bmnas.pipeline.training import Training, TrainResult, begin_training, read_training
from bmnas.pipeline.unimodal import remove_stale
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.tasks import check_task, check_test
from bmnas.tasks.task import Task


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

    ``name`` is one of ``bmnas.spaces.fusions.FUSIONS``. Its channels C and length L are those that
    ``config`` (default: the preset that the task names) gives to a search; it is trained as a
    found network is. ``run`` is by default ``runs/<task>-<name>``; ``backbones`` is the folder of
    trained backbones and feature cache, by default inside ``run``. Raises UserError when
    something given cannot be used.
    """
    check_seed(seed)
    check_task(task)
    check_test(task)
    config = config_for(task) if config is None else config
    fusion = NamedFusion(name, config.search.channels, config.search.length)
    runtime = Runtime.choose() if runtime is None else runtime
    folder = Run(Path("runs") / f"{task.name}-{name}" if run is None else Path(run))
    kept = folder.backbones if backbones is None else Path(backbones)
    with lock_folders(folder.path, kept):
        wanted = {
            "task": {"name": task.name, "source": task.source},
            "strategy": "none",
            "fusion": name,
            "seed": seed,
            "preset": config.preset,
            **config.to_dict(),
            "backbones": backbones_record(folder, kept, seed),
            "versions": versions(),
            "hardware": {**hardware(runtime.device), "processes": size()},
        }

        def prepare() -> None:
            if existing == "overwrite" and backbones is None:
                # Before the run's own files: killed in between, --overwrite does the rest.
                remove_stale(task, config.unimodal, seed=seed, folder=kept)
            _prepare(folder, wanted, existing)

        first(prepare)
        if not agreed(folder.network.is_file()):
            shown = shown_by_writer(progress)
            Training(folder, kept, fusion, task, config, seed, runtime, shown).run(seed)
    return read_training(folder, fusion)


def _prepare(folder: Run, wanted: Mapping[str, Any], existing: Existing) -> None:
    """Make ``folder`` ready to be trained in; raises UserError when it holds something else."""
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
