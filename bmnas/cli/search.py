"""``bmnas search``: which features to fuse, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from bmnas.cli.init import task_of_table
from bmnas.cli.options import Json, SearchSettings, Seed, StageOptions, TaskOptions, grouped
from bmnas.cli.output import next_command, print_json, task_again
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config, follows_from_data
from bmnas.report.record import load_run
from bmnas.report.tables import print_tables, run_tables
from bmnas.report.text import genotype_text
from bmnas.spaces.ensembles.space import Ensemble
from bmnas.spaces.registry import space_named
from bmnas.spaces.space import SearchSpace
from bmnas.strategies import strategy_named
from bmnas.strategies.target import Target
from bmnas.tasks import Task

if TYPE_CHECKING:
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.search import SearchResult


@dataclass(frozen=True)
class Method:
    """Method."""

    strategy: Annotated[
        str,
        Option(
            help="bmnas (Algorithm 1); random, local or regularised (regularised evolution), which "
            "try --candidates; mmnas, mfas or evolution, whose settings are in the section of that "
            "name of a preset."
        ),
    ] = "bmnas"
    space: Annotated[
        str | None,
        Option(
            help="cells, mfas, trees, fusions, mmnas or ensembles; by default the strategy's own."
        ),
    ] = None
    recipe: Annotated[
        Literal["default", "paper"],
        Option(help="For bmnas and mmnas; paper: without reranking and unimodal logits."),
    ] = "default"
    seed: Seed = 0
    seeds: Annotated[
        int, Option(help="Searches at once with seeds from --seed on; keeps the best genotype.")
    ] = 1

    @property
    def looked_in(self) -> type[SearchSpace[Any]]:
        """The space to look in."""
        return space_named(self.space or strategy_named(self.strategy).SPACE)

    def config(self, config: Config, settings: SearchSettings) -> Config:
        """Return ``config`` with the options; raises UserError for those that contradict."""
        config = config.override("search", **settings.given(self.strategy, self.space))
        if self.recipe == "default":
            return config
        if not strategy_named(self.strategy).PAPER:
            raise UserError(
                f"--recipe paper: received --strategy {self.strategy} too, expected one"
            )
        if settings.rerank:
            raise UserError(
                f"--recipe paper: received --rerank {settings.rerank} too, expected one"
            )
        return config.as_in_the_paper(self.strategy)


@dataclass(frozen=True)
class Limits:
    """Limits of what is served: one sample, one thread, on this machine."""

    target: Annotated[
        Literal["onnx"], Option(help="What runs the network: onnxruntime, in float32.")
    ] = "onnx"
    max_latency_ms: Annotated[
        float | None, Option(help="Milliseconds that it may take, backbones included.")
    ] = None
    max_parameters: Annotated[
        float | None, Option(help="Weights that it may have, backbones included, such as 1e6.")
    ] = None

    pareto: Annotated[
        bool,
        Option(
            "--pareto",
            help="Also return what no other network is better than in score, latency and weights.",
        ),
    ] = False

    def found(self) -> Target | None:
        """Return what the search aims at, None without limits; raises UserError."""
        from bmnas.cli.export import latency_timer

        if self.max_latency_ms is None and self.max_parameters is None and not self.pareto:
            return None
        timer = latency_timer() if self.pareto or self.max_latency_ms is not None else None
        return Target(self.max_latency_ms, self.max_parameters, timer, self.pareto)


@grouped
def search(
    table: Annotated[
        Path | None,
        Argument(
            help="A table, in place of --task: the task file beside it is used, or written as by "
            "bmnas init."
        ),
    ] = None,
    *,
    source: TaskOptions,
    run: Annotated[Path | None, Option(help="Run folder, by default runs/<task>.")] = None,
    method: Method,
    settings: SearchSettings,
    limits: Limits,
    stage: StageOptions,
    budget: Annotated[
        float | None,
        Option(
            help="Minutes that search and training shall take on this machine, in place of a "
            "preset: trainings become longer or shorter."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find which features to fuse and how: unimodal networks, feature cache, search.

    Writes a run folder with genotype.json. Test data is not read. A search that was stopped goes on
    with --resume and ends exactly as it would have without the stop.

    Example: bmnas search --task digits --epochs 10 --run runs/short
    """
    from bmnas.machine.distributed import is_rank_zero
    from bmnas.pipeline.search import search as run_search

    if table is not None:
        if source.task != TaskOptions.task:
            raise UserError(f"received {table} and --task {source.task}, expected one of them")
        source = replace(source, task=str(task_of_table(table)))
    task, config = source.load(method.looked_in)
    arguments = stage.arguments()
    if budget is not None:
        folder = Path("runs") / task.name if run is None else run
        resumed = stage.resume and (folder / "config.json").is_file()
        given = budget, task, source.preset, method.looked_in
        config = _within(*given, folder, resumed, arguments["runtime"])
    result = run_search(
        task,
        run=run,
        config=method.config(config, settings),
        strategy=method.strategy,
        space=method.space,
        seed=method.seed,
        seeds=method.seeds,
        target=limits.found(),
        **arguments,
    )
    if not is_rank_zero():
        return
    if as_json:
        found = {"genotype": result.genotype.to_dict(), "metrics": dict(result.metrics)}
        print_json({"run": str(result.run), **found})
    else:
        _print(result, task)


def _within(
    minutes: float,
    task: Task,
    preset: str | None,
    space: type[SearchSpace[Any]],
    folder: Path,
    resumed: bool,
    runtime: Runtime,
) -> Config:
    """Return settings that take so many ``minutes``; those of the run that is resumed."""
    from bmnas.lab.planning import config_within
    from bmnas.pipeline.train import recorded_config

    if not follows_from_data(task, preset):
        raise UserError(
            f"--budget: received preset {preset or task.preset} too, whose trainings have their "
            "lengths; leave out --budget, or say --preset default"
        )
    if resumed:
        return recorded_config(folder / "genotype.json", task)
    return config_within(task, minutes, runtime, folder, space)


def _print(result: SearchResult, task: Task) -> None:
    record = load_run(result.run)
    print(genotype_text(result.genotype))
    print_tables(run_tables(record.metrics))
    read = {name.partition(".")[0] for name in result.genotype.live_features()}
    unread = [modality.name for modality in task.modalities if modality.name not in read]
    found = result.genotype
    each = found.networks if isinstance(found, Ensemble) else (found,)
    # A hand-made fusion takes all there are.
    if unread and all(genotype.SEARCHED for genotype in each):
        typer.echo(f"note: the network found reads nothing of {', '.join(unread)}", err=True)
    path = result.run / "genotype.json"
    next_command("train", genotype=path, **task_again(task))
