"""``bmnas train``: the network of a genotype or a hand-made fusion, trained and tested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmnas.cli.stage_options import (
    Backbones,
    Compile,
    Data,
    Device,
    Json,
    Overwrite,
    Resume,
    existing_runs,
    task_again,
)

if TYPE_CHECKING:
    from bmnas.pipeline.training import TrainResult
    from bmnas.tasks import Task


def train(
    genotype: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="What bmnas search found: a genotype.json or its run folder.",
            show_default=False,
        ),
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead: a hand-made fusion, such as gmu; see docs/fusions.md.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="The task.", show_default="that of the search; digits for a fusion"),
    ] = None,
    data: Data = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Run folder.", show_default="the genotype's; runs/<task>-<fusion>"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A name, see bmnas presets, or a .toml file.",
            show_default="that of the search; the task's own for a fusion",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of the training.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a batch.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Of a label in a multilabel task.", show_default="0.5"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random.", show_default="that of the search; 0")
    ] = None,
    freeze_backbones: Annotated[
        bool | None,
        typer.Option(
            "--freeze-backbones/--train-backbones",
            help="Train the fusion network alone, or the backbones with it.",
            show_default="the preset's",
        ),
    ] = None,
    unimodal_logits: Annotated[
        bool | None,
        typer.Option(
            help="Add the unimodal networks' logits to those of a found network.",
            show_default="the preset's",
        ),
    ] = None,
    backbones: Backbones = None,
    device: Device = "auto",
    compile_network: Compile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train the network of a genotype, or a hand-made fusion, with its backbones; test it once.

    Trains on train and validation for a fixed number of epochs; the test part is read after the
    last one. For another seed give another folder with --run.

    Example: bmnas train --genotype runs/digits/genotype.json
    """
    from bmnas.machine.distribution.ranks import writer
    from bmnas.machine.progress import Bars
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.config import config_for
    from bmnas.pipeline.fusion import train_fusion
    from bmnas.pipeline.train import recorded_config
    from bmnas.pipeline.train import train as run_train
    from bmnas.tasks import load_task

    existing = existing_runs(resume, overwrite)
    file = _genotype_file(genotype, fusion)
    if unimodal_logits:
        _require_taken(file)
    loaded = load_task(task or "digits", data) if file is None else _load_task(file, task, data)
    if preset is None and file is not None:
        config = recorded_config(file, loaded)
    else:
        config = config_for(loaded, preset)
    options: dict[str, Any] = {
        "run": run,
        "config": config.override(
            "train",
            epochs=epochs,
            batch_size=batch_size,
            threshold=threshold,
            freeze_backbones=freeze_backbones,
            unimodal_logits=unimodal_logits,
        ),
        "existing": existing,
        "backbones": backbones,
        "runtime": Runtime.choose(device, compile_network),
        "progress": Bars(),
    }
    if fusion is not None:
        result = train_fusion(fusion, loaded, seed=seed or 0, **options)
    else:
        assert file is not None
        result = run_train(file, loaded, seed=seed, **options)
    if writer():
        _print(result, loaded, as_json)


def _genotype_file(genotype: Path | None, fusion: str | None) -> Path | None:
    """Return the genotype's file, once it is known to be one; None where there is a fusion."""
    from bmnas.machine.errors import UserError
    from bmnas.pipeline.run_folder import genotype_file
    from bmnas.spaces.registry import load_architecture

    if (genotype is None) == (fusion is None):
        found = "neither" if genotype is None else "both"
        raise UserError(f"received {found} of --genotype and --fusion, expected one of them")
    if genotype is None:
        return None
    file = genotype_file(genotype)
    if not file.is_file():
        raise UserError(f"{file}: no such file; make it with: bmnas search")
    # Before the task: of a wrong file there is no task to ask for.
    load_architecture(file)
    return file


def _require_taken(genotype: Path | None) -> None:
    """Raise UserError for --unimodal-logits with what takes none."""
    from bmnas.machine.errors import UserError
    from bmnas.spaces.registry import load_architecture, takes_unimodal_logits

    if genotype is None or not takes_unimodal_logits(load_architecture(genotype)):
        what = "a hand-made fusion" if genotype is None else f"{genotype}, a network of MFAS"
        raise UserError(
            f"--unimodal-logits: received {what}, expected Cells or a tree that a search found; "
            "leave the option out"
        )


def _load_task(genotype: Path, task: str | None, data: Path | None) -> Task:
    from bmnas.machine.errors import UserError
    from bmnas.pipeline.run_folder import Run
    from bmnas.tasks import load_task, reload_task

    if task is not None:
        return load_task(task, data)
    origin = Run(genotype.parent)
    if not origin.config.is_file():
        raise UserError(
            f"{genotype}: lies in no run folder that says which task it is for; name the task "
            "with --task (and --data)"
        )
    source = origin.read_config()["task"]["source"]
    return reload_task(source if data is None else {**source, "data": str(data)})


def _print(result: TrainResult, task: Task, as_json: bool) -> None:
    import json
    import shlex

    if as_json:
        facts = {
            "run": str(result.run),
            "network": str(result.network),
            "metrics": dict(result.metrics),
        }
        print(json.dumps(facts, indent=2))
        return

    from bmnas.report import load_run
    from bmnas.report.tables import print_tables, run_tables

    print_tables(run_tables(load_run(result.run)))
    if result.genotype is None:
        what = f"--run {shlex.quote(str(result.run))}"
    else:
        what = f"--genotype {shlex.quote(str(result.run / 'genotype.json'))}"
    typer.echo(f"Next: bmnas export {what}{task_again(task.source)}", err=True)
