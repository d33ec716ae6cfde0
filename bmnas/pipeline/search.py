"""The search stage: unimodal networks, feature cache, strategy; a run folder with a genotype."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmnas.backbones import Backbone
from bmnas.backbones.text import TextBackbone
from bmnas.features.cache import FeatureCache, open_features
from bmnas.features.reading import Pooled
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import hardware, versions
from bmnas.machine.distribution.ranks import agreed, first, size, writer
from bmnas.machine.distribution.writing import lock_folders, shown_by_writer
from bmnas.machine.errors import UserError
from bmnas.machine.files import write_json
from bmnas.machine.profiling import Profile, StepRecorder
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime, check_seed
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.run_folder import Existing, Run, require_same
from bmnas.pipeline.search_metrics import search_metrics
from bmnas.pipeline.unimodal import remove_stale, unimodal_networks
from bmnas.report import write_architecture, write_history
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells import native
from bmnas.spaces.registry import load_architecture
from bmnas.strategies import STRATEGIES, SearchProblem
from bmnas.tasks import check_task
from bmnas.tasks.task import Task
from bmnas.training.heads import head_for

_FIXED = ("task", "strategy", "seed", "seeds", "search", "unimodal", "backbones")


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its folder, the genotype found, and ``metrics`` as in the file.

    ``profile`` is of the steps that this call recorded, None where it recorded none.
    """

    run: Path
    genotype: Architecture
    metrics: Mapping[str, Any]
    profile: Profile | None = None

    @property
    def validation(self) -> float:
        """The validation score, as a fraction, by which the genotype was kept.

        The supernet's in its epoch; the candidate's where short trainings decided.
        """
        return float(self.metrics["search"]["validation"])


def search(
    task: Task,
    *,
    run: str | Path | None = None,
    config: Config | None = None,
    strategy: str = "bmnas",
    seed: int = 0,
    seeds: int = 1,
    existing: Existing = "refuse",
    backbones: str | Path | None = None,
    runtime: Runtime | None = None,
    profile: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Find a genotype for ``task`` and write the run folder ``run`` (default ``runs/<task>``).

    ``config`` is by default the preset that the task names. ``existing`` says what to do with a
    folder that holds a run: refuse, resume it, or overwrite it. ``backbones`` is the folder of
    trained backbones and feature cache, by default inside ``run``; several runs may share one.
    Overwriting keeps the backbones that suit ``task``, ``config`` and ``seed``. ``seeds`` searches,
    with ``seed`` and those after it, run at once in strategy ``bmnas``, on the same backbones; the
    best genotype is the run's, ``genotypes/<seed>.json`` are all of them. ``profile`` writes
    a trace of some steps of strategy ``bmnas`` beside the results, which stay the same. Reads no
    test data. Raises UserError when task, settings or folder cannot be used.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"received strategy {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    if profile and strategy != "bmnas":
        raise UserError(
            f"--profile records the steps of strategy bmnas, received {strategy}: leave one out"
        )
    check_seed(seed)
    check_task(task)
    config = config_for(task) if config is None else config
    check_seeds(seeds, strategy, config.search.precision)
    runtime = Runtime.choose() if runtime is None else runtime
    folder = Run(Path("runs") / task.name if run is None else Path(run))
    kept = folder.backbones if backbones is None else Path(backbones)
    # Of several ranks the first one's steps are as good as any.
    recorder = StepRecorder(folder.trace, runtime.device) if profile and writer() else None
    progress = shown_by_writer(progress)
    with lock_folders(folder.path, kept):
        wanted = {
            "task": {"name": task.name, "source": task.source},
            "strategy": strategy,
            "seed": seed,
            **({"seeds": seeds} if seeds > 1 else {}),
            "preset": config.preset,
            **config.to_dict(),
            "backbones": backbones_record(folder, kept, seed),
            "versions": versions(),
            "hardware": {
                **hardware(runtime.device),
                "bfloat16": runtime.computes_bfloat16(),
                "processes": size(),
            },
        }

        def prepare() -> None:
            if existing == "overwrite" and backbones is None:
                # Before the run's own files: killed in between, --overwrite does the rest.
                remove_stale(task, config.unimodal, seed=seed, folder=kept)
            _prepare(folder, wanted, existing)

        first(prepare)
        if not agreed(folder.genotype.is_file()):
            _search(folder, kept, task, config, strategy, seed, seeds, runtime, recorder, progress)
    if recorder is None:
        return read_search(folder.path)
    if recorder.profile is None:
        progress.note("no epoch of the search was left to run, so there is nothing to profile")
    return dataclasses.replace(read_search(folder.path), profile=recorder.profile)


def read_search(run: str | Path) -> SearchResult:
    """Return the result that a finished search left in ``run``; raises UserError without one."""
    folder = Run(Path(run))
    metrics = folder.read_metrics()
    if "search" not in metrics:
        raise UserError(f"{folder.path}: holds no finished search; go on with --resume")
    return SearchResult(folder.path, load_architecture(folder.genotype), metrics)


def backbones_record(folder: Run, kept: Path, seed: int) -> dict[str, Any]:
    """Return what config.json says of the backbones: their folder, if elsewhere, and seed."""
    elsewhere = kept.resolve() != folder.backbones.resolve()
    return {"folder": str(kept.resolve()) if elsewhere else None, "seed": seed}


def check_seeds(seeds: int, strategy: str, precision: str) -> None:
    """Raise UserError for less than one seed, or for several of a strategy that takes one."""
    if seeds < 1:
        raise UserError(f"--seeds: received {seeds}, expected 1 or more")
    if seeds > 1 and strategy != "bmnas":
        raise UserError(
            f"--seeds: received {seeds} with strategy {strategy}, expected strategy bmnas, whose "
            "supernets it trains at once; for other strategies sweep over seeds, see bmnas sweep"
        )
    if seeds > 1 and precision != "float32":
        raise UserError(
            f"--seeds {seeds}: received precision {precision}, expected float32 for several seeds"
        )


def _prepare(folder: Run, wanted: Mapping[str, Any], existing: Existing) -> None:
    if existing == "overwrite":
        folder.remove_search()
    if not folder.config.exists() or not folder.begun():
        write_json(folder.config, wanted)
        return
    if existing == "refuse":
        name = folder.read_config()["task"].get("name")
        raise UserError(
            f"{folder.path}: holds a run of task {name} already; go on with --resume, start anew "
            "with --overwrite, or choose another folder with --run"
        )
    own = wanted["strategy"]
    require_same(folder, wanted, (*_FIXED, own) if own in wanted else _FIXED)


def _search(
    folder: Run,
    kept: Path,
    task: Task,
    config: Config,
    strategy: str,
    seed: int,
    seeds: int,
    runtime: Runtime,
    recorder: StepRecorder | None,
    progress: Progress,
) -> None:
    head = head_for(task.kind, config.train.threshold)
    networks = unimodal_networks(
        task,
        config.unimodal,
        head,
        seed=seed,
        folder=kept,
        runtime=runtime,
        progress=progress,
    )
    backbones = {name: found.backbone for name, found in networks.items()}
    note_unreadable(task, backbones, progress)
    cache = open_features(
        task,
        backbones,
        parts=("train", "validation"),
        reading=Pooled(config.search.length),
        folder=kept / "features",
        device=runtime.device,
        progress=progress,
        dtype=config.search.cache_dtype,
    ).on(runtime.device)
    lowered = config.search.precision == "bfloat16" and runtime.computes_bfloat16()
    owner = _owner(cache, config, strategy, seed, seeds, lowered=lowered)
    problem = SearchProblem(
        train=cache.samples("train"),
        validation=cache.samples("validation"),
        classes=task.outputs,
        head=head,
        config=config.search,
        seed=seed,
        runtime=runtime,
        checkpoint=Checkpoint(folder.checkpoint, owner, folder.history),
        candidates=lambda: Checkpoint(folder.rerank_checkpoint, owner, folder.rerank),
        progress=progress,
        recorder=recorder,
        seeds=seeds,
        mfas=config.strategies["mfas"],
        evolution=config.strategies["evolution"],
    )
    outcome = STRATEGIES[strategy](problem)

    def finish() -> None:
        folder.update_metrics(
            {
                "metric": head.metric,
                **search_metrics(strategy, networks, cache, outcome, runtime.device),
                "peak_memory": {"search": problem.checkpoint.spent.peak_memory},
            }
        )
        write_pictures(folder, outcome.genotype, progress)
        origin = {"task": task.name, "strategy": strategy, "run": folder.path.name}
        for member in outcome.members:
            own = _with_provenance(member.genotype, origin, member.seed, member.validation)
            own.save(folder.genotypes / f"{member.seed}.json")
        for place, (other, score) in enumerate(outcome.others, start=2):
            _with_provenance(other, origin, seed, score).save(folder.other_genotype(place))
        # Last: a folder with a genotype is a finished search.
        found_by = seed if outcome.seed is None else outcome.seed
        best = _with_provenance(outcome.genotype, origin, found_by, outcome.validation)
        best.save(folder.genotype)

    first(finish)


def _with_provenance(
    genotype: Architecture, origin: Mapping[str, str], seed: int, validation: float
) -> Architecture:
    own = {"seed": seed, "best_val": validation, "versions": versions()}
    return genotype.with_provenance({**origin, **own})


def write_pictures(folder: Run, genotype: Architecture | None, progress: Progress) -> None:
    """Draw the genotype, if any, and the curves of a run; tell it where that cannot be done."""
    if importlib.util.find_spec("matplotlib") is None:
        progress.note("no pictures without matplotlib: pip install matplotlib, then bmnas show")
        return
    try:
        write_history(folder.path, folder.path / "history.svg")
        if genotype is not None:
            write_architecture(genotype, folder.path / "architecture.svg")
    except UserError as error:
        # More features or Cells than a picture can show must not cost the result.
        progress.note(f"no picture: {error}")


def note_unreadable(task: Task, backbones: Mapping[str, Backbone], progress: Progress) -> None:
    """Tell how many texts of train and validation have no word that the vocabulary knows."""
    for modality in task.modalities:
        backbone = backbones[modality.name]
        if isinstance(backbone, TextBackbone):
            rows = modality.data[modality.rows_of(task.samples("train", "validation"))]
            count = backbone.unreadable(rows)
            if count:
                progress.note(f"{modality.name}: {count} of {len(rows)} texts have no known word")


def _owner(
    cache: FeatureCache, config: Config, strategy: str, seed: int, seeds: int, *, lowered: bool
) -> str:
    labels = cache.samples("train", "validation").labels
    depends: dict[str, object] = {
        "features": cache.keys,
        "labels": hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
        "search": dataclasses.asdict(config.search),
        "strategy": strategy,
        "seed": seed,
        # What computes a step decides its last bits.
        "native": native.kernels() is not None,
        "lowered": lowered,
    }
    if seeds > 1:
        depends["seeds"] = seeds
    own = config.of_strategy(strategy)
    if own:
        depends["own"] = own
    threshold = head_for(cache.task.kind, config.train.threshold).threshold
    if threshold is not None:
        # The scores by which a genotype is kept depend on it.
        depends["threshold"] = threshold
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
