"""``bmnas search``: which features to fuse, and how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bmnas.cli.options import Json, SearchSettings, Seed, StageOptions, TaskOptions, grouped
from bmnas.cli.output import next_command, print_json, task_again

if TYPE_CHECKING:
    from bmnas.pipeline.config import Config
    from bmnas.pipeline.search import SearchResult
    from bmnas.report.record import RunRecord
    from bmnas.tasks import Task


@dataclass(frozen=True)
class Method:
    """How is searched."""

    strategy: Annotated[
        str,
        typer.Option(
            help="bmnas (Algorithm 1); random, local or regularised (regularised evolution), which "
            "try --candidates; mfas or evolution, whose settings are in the preset's section of "
            "that name."
        ),
    ] = "bmnas"
    space: Annotated[
        str | None,
        typer.Option(
            help="What is searched: cells, mfas, trees or fusions.",
            show_default="the strategy's own",
        ),
    ] = None
    recipe: Annotated[
        str,
        typer.Option(
            help="For strategy bmnas: default, or paper, without reranking and unimodal logits."
        ),
    ] = "default"
    seed: Seed = 0
    seeds: Annotated[
        int,
        typer.Option(help="Searches at once with seeds from --seed on; keeps the best genotype."),
    ] = 1

    def config(self, config: Config, settings: SearchSettings) -> Config:
        """Return ``config`` with the options of the command line.

        ``--recipe paper`` leaves out what the paper does not have. Raises UserError for an unknown
        recipe, for one that other options contradict, and for options that the strategy does not
        read.
        """
        from bmnas.machine.errors import UserError
        from bmnas.strategies import check_settings

        given = dataclasses.asdict(settings)
        named = [name for name, value in given.items() if value is not None]
        check_settings(self.strategy, self.space, named)
        config = config.override("search", **given)
        if self.recipe == "default":
            return config
        if self.recipe != "paper":
            raise UserError(f"--recipe: received {self.recipe!r}, expected default or paper")
        if self.strategy != "bmnas" or settings.rerank:
            ours = self.strategy == "bmnas"
            other = f"--rerank {settings.rerank}" if ours else f"--strategy {self.strategy}"
            raise UserError(f"--recipe paper: received {other} too, expected one of the two")
        return config.override("search", rerank=0).override("train", unimodal_logits=False)


@grouped
def search(
    *,
    source: TaskOptions,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder.", show_default="runs/<task>")
    ] = None,
    method: Method,
    settings: SearchSettings,
    stage: StageOptions,
    as_json: Json = False,
) -> None:
    """Find which features to fuse and how: unimodal networks, feature cache, search.

    Writes a run folder with genotype.json. Test data is not read. A search that was stopped goes on
    with --resume and ends exactly as it would have without the stop.

    Example: bmnas search --task digits --epochs 10 --run runs/short
    """
    from bmnas.machine.distributed import is_rank_zero
    from bmnas.machine.progress import Bars
    from bmnas.pipeline.search import search as run_search

    existing = stage.existing
    task, config = source.load()
    result = run_search(
        task,
        run=run,
        config=method.config(config, settings),
        strategy=method.strategy,
        space=method.space,
        seed=method.seed,
        seeds=method.seeds,
        existing=existing,
        backbones=stage.backbones,
        runtime=stage.runtime(),
        progress=Bars(),
    )
    if is_rank_zero():
        _print(result, task, as_json)


def _print(result: SearchResult, task: Task, as_json: bool) -> None:
    if as_json:
        facts = {
            "run": str(result.run),
            "genotype": result.genotype.to_dict(),
            "metrics": dict(result.metrics),
        }
        print_json(facts)
        return

    from bmnas.report import genotype_text, load_run
    from bmnas.report.tables import print_tables, run_tables

    print(genotype_text(result.genotype))
    record = load_run(result.run)
    print_tables(run_tables(record))
    typer.echo(_where_the_time_went(record), err=True)
    read = {name.partition(".")[0] for name in result.genotype.live_features()}
    unread = [modality.name for modality in task.modalities if modality.name not in read]
    if unread:
        typer.echo(f"note: the network found reads nothing of {', '.join(unread)}", err=True)
    threshold = result.metrics["search"].get("threshold")
    if record.config.train.get("unimodal_logits"):
        # It was chosen for the logits of what was found, to which others are added.
        threshold = None
    path = result.run / "genotype.json"
    next_command("train", genotype=path, task=task_again(task.source), threshold=threshold)


def _where_the_time_went(run: RunRecord) -> str:
    """Return the seconds by stage on one line, those that nothing was spent on left out."""
    seconds = run.metrics.seconds
    stages = [
        f"{name.replace('_', ' ')} {spent:.1f}"
        for name, spent in seconds.items()
        if spent and name not in ("search", "total", "gpu_hours", "train", "train_compile")
    ]
    return f"Seconds: {', '.join(stages)}; in all {seconds.get('total') or 0:.1f}"
