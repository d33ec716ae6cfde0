"""``bmnas search``: which features to fuse, and how."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bmnas.cli.stage_options import (
    Backbones,
    CacheDtype,
    Compile,
    Data,
    Device,
    Json,
    Overwrite,
    Precision,
    Resume,
    existing_runs,
    task_again,
)

if TYPE_CHECKING:
    from bmnas.machine.profiling import Profile
    from bmnas.pipeline.config import Config
    from bmnas.pipeline.search import SearchResult
    from bmnas.report.record import RunRecord
    from bmnas.report.tables import TextTable
    from bmnas.tasks import Task

_SHAPE = "Shape of the supernet"
_BUDGET = "Budget"


def search(
    task: Annotated[
        str,
        typer.Option(help="A name (see bmnas tasks), a task.toml, or module:attribute."),
    ] = "digits",
    data: Data = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder.", show_default="runs/<task>")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A name, see bmnas presets, or a .toml file.", show_default="the task's own"
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="bmnas (Algorithm 1), random (candidates drawn evenly), mfas or evolution (spaces "
            "of their own; settings in the preset's section of that name)."
        ),
    ] = "bmnas",
    recipe: Annotated[
        str,
        typer.Option(
            help="Of strategy bmnas: default, or paper, without reranking and unimodal logits."
        ),
    ] = "default",
    cells: Annotated[int | None, typer.Option(help="N.", rich_help_panel=_SHAPE)] = None,
    steps: Annotated[int | None, typer.Option(help="M, in a Cell.", rich_help_panel=_SHAPE)] = None,
    channels: Annotated[int | None, typer.Option(help="C.", rich_help_panel=_SHAPE)] = None,
    length: Annotated[int | None, typer.Option(help="L.", rich_help_panel=_SHAPE)] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the search.", rich_help_panel=_BUDGET)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples in a batch.", rich_help_panel=_BUDGET)
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(help="Networks that strategy random tries.", rich_help_panel=_BUDGET),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(
            help="Genotypes compared with Algorithm 1's own by short trainings; 0: none, as in the "
            "paper.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    cache_dtype: CacheDtype = None,
    precision: Precision = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    seeds: Annotated[
        int,
        typer.Option(help="Searches at once with seeds from --seed on; keeps the best genotype."),
    ] = 1,
    backbones: Backbones = None,
    device: Device = "auto",
    compile_networks: Compile = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Trace some steps for Perfetto or TensorBoard."),
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find which features to fuse and how: unimodal networks, feature cache, search.

    Writes a run folder with genotype.json. Test data is not read. A search that was stopped, in
    whatever way, ends with --resume exactly as it would have.

    Example: bmnas search --task digits --epochs 10 --run runs/short
    """
    from bmnas.machine.distribution.ranks import writer
    from bmnas.machine.progress import Bars
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.config import config_for
    from bmnas.pipeline.search import search as run_search
    from bmnas.tasks import load_task

    existing = existing_runs(resume, overwrite)
    own = {
        "cells": cells,
        "steps": steps,
        "channels": channels,
        "epochs": epochs,
        "batch_size": batch_size,
        "candidates": candidates,
        "rerank": rerank,
        "precision": precision,
    }
    _check_read(strategy, own)
    loaded = load_task(task, data)
    config = config_for(loaded, preset).override(
        "search", **own, length=length, cache_dtype=cache_dtype
    )
    result = run_search(
        loaded,
        run=run,
        config=_of_recipe(recipe, strategy, config, rerank),
        strategy=strategy,
        seed=seed,
        seeds=seeds,
        existing=existing,
        backbones=backbones,
        runtime=Runtime.choose(device, compile_networks),
        profile=profile,
        progress=Bars(),
    )
    if writer():
        _print(result, loaded, as_json)


def _of_recipe(recipe: str, strategy: str, config: Config, rerank: int | None) -> Config:
    """Return ``config`` with what the paper does not have left out, where its recipe is asked for.

    Raises UserError for an unknown recipe, and for one that other options contradict.
    """
    from bmnas.machine.errors import UserError

    if recipe not in ("default", "paper"):
        raise UserError(f"--recipe: received {recipe!r}, expected default or paper")
    if recipe == "default":
        return config
    if strategy != "bmnas" or rerank:
        other = f"--strategy {strategy}" if strategy != "bmnas" else f"--rerank {rerank}"
        raise UserError(f"--recipe paper: received {other} too, expected one of the two")
    return config.override("search", rerank=0).override("train", unimodal_logits=False)


def _check_read(strategy: str, given: Mapping[str, object]) -> None:
    """Raise UserError for an option that a strategy with a section of its own does not read."""
    from bmnas.machine.errors import UserError
    from bmnas.pipeline.config import Config

    unread = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if unread and Config().of_strategy(strategy):
        raise UserError(
            f"strategy {strategy}: received {', '.join(unread)}, which it does not read; its "
            f"settings are in section [{strategy}] of a preset: print one with bmnas presets, "
            "change it, and give the file to --preset"
        )


def _print(result: SearchResult, task: Task, as_json: bool) -> None:
    import dataclasses
    import json
    import shlex

    path = result.run / "genotype.json"
    if as_json:
        facts = {
            "run": str(result.run),
            "genotype": result.genotype.to_dict(),
            "metrics": dict(result.metrics),
        }
        if result.profile is not None:
            facts["profile"] = dataclasses.asdict(result.profile)
        print(json.dumps(facts, indent=2, default=str))
        return

    from bmnas.report import genotype_text, load_run
    from bmnas.report.tables import print_tables, run_tables

    print(genotype_text(result.genotype))
    record = load_run(result.run)
    print_tables(run_tables(record))
    if result.profile is not None:
        print_tables([_profile_table(result.profile)])
        typer.echo(f"Trace: {result.profile.trace} (https://ui.perfetto.dev)", err=True)
    typer.echo(_where_the_time_went(record), err=True)
    read = {name.partition(".")[0] for name in result.genotype.live_features()}
    unread = [modality.name for modality in task.modalities if modality.name not in read]
    if unread:
        typer.echo(f"note: the network found reads nothing of {', '.join(unread)}", err=True)
    threshold = result.metrics["search"].get("threshold")
    # It was chosen for the logits of what was found, to which others may be added.
    fits = threshold is not None and not record.config.section("train").get("unimodal_logits")
    chosen = f" --threshold {threshold}" if fits else ""
    again = task_again(task.source)
    typer.echo(f"Next: bmnas train --genotype {shlex.quote(str(path))}{again}{chosen}", err=True)


def _where_the_time_went(run: RunRecord) -> str:
    """Return the seconds by stage on one line, those that nothing was spent on left out."""
    names = run.metrics.section("seconds")
    seconds = {name: run.metrics.number("seconds", name) for name in names}
    stages = [
        f"{name.replace('_', ' ')} {spent:.1f}"
        for name, spent in seconds.items()
        if spent and name not in ("search", "total", "gpu_hours", "train", "train_compile")
    ]
    return f"Seconds: {', '.join(stages)}; in all {seconds.get('total') or 0:.1f}"


def _profile_table(profile: Profile) -> TextTable:
    from bmnas.report.tables import TextTable

    rows = tuple(
        (o.name, f"{o.calls:,}", f"{o.milliseconds:.1f}", f"{o.share:.1%}")
        for o in profile.operations
    )
    title = f"Operations of {profile.steps} steps, time in themselves"
    return TextTable(title, ("operation", "calls", "ms", "share"), rows)
