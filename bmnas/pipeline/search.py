"""The search stage: unimodal networks, feature cache, strategy; a run folder with a genotype."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from bmnas.backbones import Backbone
from bmnas.backbones.words import TextBackbone
from bmnas.features.cache import FeatureCache
from bmnas.features.pairs import judged, shown
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import COMPILE, versions
from bmnas.machine.distributed import on_rank_zero, world_size
from bmnas.machine.errors import UserError
from bmnas.machine.files import atomic_folder, sha256_json, write_json
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime
from bmnas.machine.schema import plain
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.context import RunContext, check_outputs, worded
from bmnas.pipeline.latency import LatencyTable
from bmnas.pipeline.network_costs import NetworkCosts
from bmnas.pipeline.run_folder import Existing, Run, require_same
from bmnas.pipeline.unimodal import (
    Unimodal,
    evaluate_unimodal,
    folds_of,
    of_all_samples,
    remove_stale,
    unimodal_networks,
)
from bmnas.report.front import front_parts
from bmnas.report.history import history_parts
from bmnas.report.metrics import (
    FrontPoint,
    MemoryPeak,
    RunMetrics,
    SearchMetrics,
    SeedsMetrics,
    TargetMetrics,
    UnimodalMetrics,
)
from bmnas.report.picture import draw_genotype
from bmnas.report.predictions import confusion_parts, scatter_parts
from bmnas.report.record import load_run
from bmnas.report.style import figure_of, write_figure
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.operations import operation_names
from bmnas.spaces.registry import load_architecture, space_named
from bmnas.spaces.space import SearchSpace
from bmnas.strategies import Strategy, strategy_named
from bmnas.strategies.front import Point
from bmnas.strategies.problem import Outcome, SearchProblem
from bmnas.strategies.target import Aim, Target
from bmnas.tasks import check_task, notes
from bmnas.tasks.task import Part, Task

PAIRS = 20_000  # of a gallery: every candidate is judged on it
_COMPARED = 3  # whole networks that say how well the table predicts
_FIXED = ("task", "strategy", "space", "seed", "seeds", "target", "search", "unimodal", "backbones")


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its folder, the genotype found, and ``metrics`` as in the file."""

    run: Path
    genotype: Architecture
    metrics: Mapping[str, Any]

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
    space: str | None = None,
    seed: int = 0,
    seeds: int = 1,
    existing: Existing = "refuse",
    backbones: str | Path | None = None,
    target: Target | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find a genotype for ``task`` and write the run folder ``run`` (default ``runs/<task>``).

    ``config`` is by default the preset that the task names. ``strategy`` looks in ``space``, by
    default in its own. ``existing`` says what to do with a folder that holds a run: refuse, resume
    it, or overwrite it, which keeps the backbones that suit. ``backbones`` is the folder of trained
    backbones and feature cache, by default inside ``run``; several runs may share one. ``seeds``
    searches, with ``seed`` and those after it, run at once in strategy ``bmnas``, on the same
    backbones; the best genotype is the run's, ``genotypes/<seed>.json`` are all of them. With
    a ``target`` what is found is within its limits once it is served, see
    ``bmnas.strategies.target``. Reads no test data. Raises UserError when task, settings or folder
    cannot be used, or nothing is within the limits.
    """
    method = strategy_named(strategy)
    check_task(task)
    check_seeds(seeds, strategy)
    method.check_space(space)
    looked_in = space_named(space or method.SPACE)
    config = config_for(task, space=looked_in) if config is None else config
    check_outputs(task, looked_in)
    _check_target(target, method, config)
    task = worded(task, looked_in)
    folder = Run(Path("runs") / task.name if run is None else Path(run))
    context = RunContext(
        folder, task, config, seed, backbones=backbones, runtime=runtime, progress=progress
    )
    several: dict[str, Any] = {"seeds": seeds} if seeds > 1 else {}
    limits = {} if target is None else {"target": target.record()}
    wanted = {"strategy": strategy, "space": space, **several, **limits, **context.record()}

    def work() -> None:
        _, outcome, metrics = run_stages(context, method, space, seeds, target)
        on_rank_zero(lambda: _write(context, strategy, outcome, metrics))

    context.work(folder.genotype, lambda: _prepare(context, wanted, existing), work)
    metrics = folder.read_metrics()
    if metrics.search is None:
        raise UserError(f"{folder.path}: holds no finished search; go on with --resume")
    return SearchResult(folder.path, load_architecture(folder.genotype), metrics.to_dict())


def check_seeds(seeds: int, strategy: str) -> None:
    """Raise UserError for less than one seed, or for several of a strategy that takes one."""
    if seeds < 1:
        raise UserError(f"--seeds: received {seeds}, expected 1 or more")
    if seeds > 1 and strategy != "bmnas":
        raise UserError(
            f"--seeds: received {seeds} with strategy {strategy}, expected strategy bmnas, which "
            "trains them side by side; for other strategies sweep over seeds, see bmnas sweep"
        )


def _check_target(target: Target | None, method: type[Strategy], config: Config) -> None:
    """Raise UserError where one network is derived, that may be outside the limits."""
    if target is not None and method.TRAINS_SUPERNET and not config.search.rerank:
        raise UserError(
            "search.rerank: received 0 with limits, which one network may not keep, expected 1 or "
            "more: leave out --recipe paper"
        )


def _prepare(context: RunContext, wanted: Mapping[str, Any], existing: Existing) -> None:
    folder = context.folder
    if existing == "overwrite":
        if not context.shares_backbones:
            # Before the run's own files: killed in between, --overwrite does the rest.
            remove_stale(context)
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


def run_stages(
    context: RunContext,
    method: type[Strategy],
    space: str | None = None,
    seeds: int = 1,
    target: Target | None = None,
) -> tuple[dict[str, Backbone], Outcome[Architecture], RunMetrics]:
    """Search in a folder that is ready for it; return backbones, result and measures."""
    folder, config = context.folder, context.config
    networks = unimodal_networks(context)
    backbones = {name: found.backbone for name, found in networks.items()}
    _note_texts(context.task, backbones, context.progress)
    for note in notes(context.task, "validation"):
        context.progress.note(note)
    length = method.length(space, config.search.length)
    cache = context.features(backbones, ("train", "validation"), length, folds=folds_of(networks))
    cache = cache.on(context.runtime.device)
    limits = {} if target is None else target.record()
    fingerprint, name = _fingerprint(context, cache, method, space, seeds, limits), method.NAME
    problem = SearchProblem(
        train=shown(context.task, cache.samples("train")),
        validation=judged(context.task, cache.samples("validation"), PAIRS),
        classes=context.task.outputs,
        head=context.head,
        config=config.search,
        seed=context.seed,
        runtime=context.runtime,
        checkpoint=Checkpoint(folder.checkpoint, fingerprint, folder.history),
        candidates=lambda: Checkpoint(folder.rerank_checkpoint, fingerprint, folder.rerank),
        progress=context.progress,
        seeds=seeds,
        own=config.strategies.get(name),
        space=space,
        sizes=_sizes(context, method, space),
        unimodal=_unimodal_logits(context, backbones),
        types={modality.name: modality.type for modality in context.task.modalities},
    )
    if target is not None:
        problem = _with_aim(context, problem, problem.space_for(method), backbones, target)
    outcome = method.search(problem)
    metrics = dataclasses.replace(
        _metrics(context, networks, cache, outcome),
        search=SearchMetrics(
            validation=outcome.validation,
            strategy=name,
            best_epoch=outcome.best_epoch,
            best_candidate=outcome.best_candidate,
            candidates=outcome.candidates,
            samples_seen=outcome.samples_seen,
            threshold=outcome.threshold,
            seeds=_over_seeds(outcome) if outcome.members else None,
            target=None if problem.aim is None else _served(problem.aim, outcome.genotype),
            front=tuple(
                FrontPoint(point.score, point.latency_ms, point.parameters, point.unimodal_logits)
                for point in outcome.front
            ),
        ),
        peak_memory={"search": MemoryPeak(**problem.checkpoint.meter.peak_memory)},
    )
    return backbones, outcome, metrics


def _with_aim(
    context: RunContext,
    problem: SearchProblem,
    space: SearchSpace[Any],
    backbones: Mapping[str, Backbone],
    target: Target,
) -> SearchProblem:
    """Return ``problem`` within the limits; raises UserError where nothing in ``space`` is."""
    table = None
    if target.timer is not None and target.times:
        table = LatencyTable(context.folder.latencies, target.timer)
    costs = NetworkCosts(context.task, backbones, context.head, table)
    forms = (True, False) if context.adds_logits or context.adds_words else (False,)

    def final(found: Architecture) -> Architecture:
        return space.final(found) if isinstance(found, space.GENOTYPE) else found

    aim = Aim(target, costs, final, forms)
    with context.progress.stage("latencies of parts", 1) as shown:
        draw = Random("whole networks")
        costs.compare((final(space.sample(draw)), forms[0]) for _ in range(_COMPARED))
        aim.check(space)
        shown.advance()
    return dataclasses.replace(problem, aim=aim)


def _served(aim: Aim, found: Architecture) -> TargetMetrics:
    """Return what ``found`` costs once it is served."""
    heads = bool(aim.form(found))
    measured = aim.costs.measure(found, heads=heads)
    return TargetMetrics(
        **aim.target.limits,
        predicted_ms=aim.predict(found, heads=heads).latency_ms,
        measured_ms=measured.latency_ms,
        parameters=measured.parameters,
        unimodal_logits=heads,
    )


def _unimodal_logits(context: RunContext, backbones: Mapping[str, Backbone]) -> dict[str, Tensor]:
    """Return what unimodal networks say of validation, where the found network is added to it.

    Zeros of samples that lack the modality.
    """
    if not context.adds_logits:
        return {}
    part: Part = "validation"
    each = {name: evaluate_unimodal(context, name, b, part).logits for name, b in backbones.items()}
    return {name: of_all_samples(context.task, name, part, own) for name, own in each.items()}


def _over_seeds(outcome: Outcome[Architecture]) -> SeedsMetrics:
    """Return what the members of a search of several seeds reached, before any short training."""
    assert outcome.seed is not None
    scores = [member.validation for member in outcome.members]
    return SeedsMetrics(
        best=outcome.seed,
        mean=statistics.fmean(scores),
        deviation=statistics.stdev(scores),
        validation={str(member.seed): member.validation for member in outcome.members},
        best_epoch={str(member.seed): member.best_epoch for member in outcome.members},
    )


def _metrics(
    context: RunContext,
    networks: Mapping[str, Unimodal],
    cache: FeatureCache,
    outcome: Outcome[Architecture],
) -> RunMetrics:
    """Return scores of the unimodal networks, and seconds and samples a second by stage.

    Backbones and features that were there already count what making them took. The seconds from
    ``compile`` to ``other`` make up ``search``.
    """
    trained = sum(found.seconds for found in networks.values())
    total = trained + cache.seconds + outcome.seconds
    stages = {COMPILE: 0.0, **{name: cost.seconds for name, cost in outcome.stages.items()}}
    seconds = {
        "backbones": trained,
        "extraction": cache.seconds,
        **stages,
        "other": outcome.seconds - sum(stages.values()),
        "search": outcome.seconds,
        "total": total,
        "gpu_hours": world_size() * total / 3600 if context.runtime.device.type == "cuda" else 0.0,
    }
    samples = {name: cost.samples for name, cost in outcome.stages.items()}
    samples["extraction"] = len(cache.task.samples(*cache.parts))
    return RunMetrics(
        metric=context.head.metric,
        unimodal={
            name: UnimodalMetrics(
                found.validation, parameters=found.parameters, metric=context.own_metric
            )
            for name, found in networks.items()
        },
        seconds=seconds,
        processor_seconds={"search": outcome.processor_seconds},
        samples_per_second={
            name: count / seconds[name]
            for name, count in samples.items()
            if count and seconds[name]
        },
    )


def _write(
    context: RunContext, strategy: str, outcome: Outcome[Architecture], metrics: RunMetrics
) -> None:
    """Write metrics, pictures and every genotype of a search; its own genotype is the last."""
    folder = context.folder
    folder.update_metrics(metrics)
    served = None if metrics.search is None else metrics.search.target
    if served is not None and context.config.train.unimodal_logits != served.unimodal_logits:
        # There is no room for them: a training must not add them.
        recorded = folder.read_config()
        recorded["train"]["unimodal_logits"] = served.unimodal_logits
        write_json(folder.config, recorded)
    write_pictures(folder, outcome.genotype, context.progress)
    origin = {"task": context.task.name, "strategy": strategy, "run": folder.path.name}

    def save(genotype: Architecture, seed: int, validation: float, path: Path) -> None:
        own = {"seed": seed, "best_val": validation, "versions": versions()}
        genotype.with_provenance({**origin, **own}).save(path)

    for member in outcome.members:
        path = folder.genotypes / f"{member.seed}.json"
        save(member.genotype, member.seed, member.validation, path)
    if outcome.front:
        _write_front(context, outcome.front, origin, metrics)
    for place, (other, score) in enumerate(outcome.others, start=2):
        save(other, context.seed, score, folder.path / f"genotype-{place}.json")
    # Last: a folder with a genotype is a finished search.
    found_by = context.seed if outcome.seed is None else outcome.seed
    save(outcome.genotype, found_by, outcome.validation, folder.genotype)


def _write_front(
    context: RunContext, points: Sequence[Point], origin: Mapping[str, Any], metrics: RunMetrics
) -> None:
    """Write a run folder for each point, which is trained in it as it was judged."""
    config = context.folder.read_config()
    with atomic_folder(context.folder.front) as aside:
        for number, point in enumerate(points, start=1):
            run = Run(aside / str(number))
            run.path.mkdir()
            train = {**config["train"], "unimodal_logits": point.unimodal_logits}
            kept = {**config["backbones"], "folder": str(context.kept.resolve())}
            write_json(run.config, {**config, "train": train, "backbones": kept})
            cost = TargetMetrics(
                predicted_ms=point.latency_ms,
                parameters=point.parameters,
                unimodal_logits=point.unimodal_logits,
            )
            found = SearchMetrics(point.score, origin["strategy"], target=cost)
            dataclasses.replace(metrics, search=found).save(run.metrics)
            own = {"front": number, "best_val": point.score, "seed": context.seed}
            point.genotype.with_provenance({**origin, **own}).save(run.genotype)
    try:
        picture = figure_of(*front_parts(load_run(context.folder.path)))
        write_figure(picture, context.folder.path / "front.svg")
    except UserError as error:
        context.progress.note(f"no picture: {error}")


def write_pictures(folder: Run, genotype: Architecture | None, progress: Progress) -> None:
    """Draw the genotype, if any, and the curves of a run; a note says why one cannot be drawn."""
    try:
        record = load_run(folder.path)
        write_figure(figure_of(*history_parts(record)), folder.path / "history.svg")
        if parts := confusion_parts(record):
            write_figure(figure_of(*parts), folder.path / "confusion.svg")
        if parts := scatter_parts(record):
            write_figure(figure_of(*parts), folder.path / "predictions.svg")
        if genotype is not None:
            write_figure(draw_genotype(genotype), folder.drawing)
    except UserError as error:
        # No matplotlib, or more features than a picture can show, must not cost the result.
        progress.note(f"no picture: {error}")


def _note_texts(task: Task, backbones: Mapping[str, Backbone], progress: Progress) -> None:
    """Tell how many texts of train and validation are cut, or have no word that is known."""
    for modality in task.modalities:
        if modality.type != "text":
            continue
        backbone = backbones[modality.name]
        rows = modality.data[modality.rows_of(task.having(modality, "train", "validation"))]
        if cut := backbone.longer(rows):
            progress.note(
                f"{modality.name}: {cut} of {len(rows)} texts are cut after "
                f"{backbone.input_spec.shape[0]} tokens: length of the modality says how many are "
                "read"
            )
        if isinstance(backbone, TextBackbone) and (count := backbone.unreadable(rows)):
            progress.note(f"{modality.name}: {count} of {len(rows)} texts have no known word")


def _sizes(context: RunContext, method: type[Strategy], space: str | None) -> dict[str, Any]:
    """Return the settings of a space that is another strategy's own: its section has its sizes."""
    if space is None or space == method.NAME or space not in context.config.strategies:
        return {}
    found: dict[str, Any] = plain(context.config.strategies[space])
    return found


def _fingerprint(
    context: RunContext,
    cache: FeatureCache,
    method: type[Strategy],
    space: str | None,
    seeds: int,
    limits: Mapping[str, Any],
) -> str:
    """Return a digest of everything that the state of this search depends on."""
    config = context.config
    labels = cache.samples("train", "validation").labels
    depends: dict[str, object] = {
        "features": cache.keys,
        "labels": hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
        "search": dataclasses.asdict(config.search),
        "own": config.to_dict().get(method.NAME, {}),
        "strategy": method.NAME,
        "space": space,
        "seed": context.seed,
        "seeds": seeds,
        # The scores by which a genotype is kept depend on it.
        "threshold": context.head.threshold,
        **({"sizes": sizes} if (sizes := _sizes(context, method, space)) else {}),
        **({"limits": limits} if limits else {}),
        **({"class_weights": weights} if (weights := context.task.loss_weights) else {}),
    }
    if method.TRAINS_SUPERNET:
        depends["operations"] = operation_names()
        bfloat16 = config.search.precision == "bfloat16"
        depends["autocast"] = bfloat16 and context.runtime.computes_bfloat16()
    return sha256_json(depends)
