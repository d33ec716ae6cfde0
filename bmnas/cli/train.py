"""``bmnas train``: the network of a genotype or a hand-made fusion, trained and tested."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmnas.cli.options import Data, Json, StageOptions, TrainSettings, grouped
from bmnas.cli.output import next_command, print_json, task_again

if TYPE_CHECKING:
    from bmnas.pipeline.config import Config
    from bmnas.pipeline.training import TrainResult
    from bmnas.tasks import Task


@dataclass(frozen=True)
class Subject:
    """What is trained, and on which task; the defaults are those of the search."""

    genotype: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="What bmnas search found: a genotype.json or its run folder.",
            show_default=False,
        ),
    ] = None
    fusion: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead: a hand-made fusion, such as gmu; see docs/fusions.md.",
            show_default=False,
        ),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(
            help="Task to train on.", show_default="that of the search; digits for a fusion"
        ),
    ] = None
    data: Data = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="A preset's name (see bmnas presets), or a .toml file.",
            show_default="that of the search; the task's own for a fusion",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of everything that is drawn at random.",
            show_default="that of the search; 0",
        ),
    ] = None

    def file(self) -> Path | None:
        """Return the genotype's file, once it is known to be one; None where there is a fusion."""
        from bmnas.machine.errors import UserError
        from bmnas.pipeline.run_folder import genotype_file
        from bmnas.spaces.registry import load_architecture

        if (self.genotype is None) == (self.fusion is None):
            found = "neither" if self.genotype is None else "both"
            raise UserError(f"received {found} of --genotype and --fusion, expected one of them")
        if self.genotype is None:
            return None
        file = genotype_file(self.genotype)
        if not file.is_file():
            raise UserError(f"{file}: no such file; make it with: bmnas search")
        # Before the task: of a wrong file there is no task to ask for.
        load_architecture(file)
        return file

    def load(self, file: Path | None) -> tuple[Task, Config]:
        """Return task and settings, by default those of the search that wrote ``file``."""
        from bmnas.pipeline.config import config_for
        from bmnas.pipeline.run_folder import Run
        from bmnas.pipeline.train import recorded_config
        from bmnas.tasks import load_task, reload_task

        if file is None or self.task is not None:
            task = load_task(self.task or "digits", self.data)
        else:
            task = reload_task(Run(file.parent).read_source(file), self.data)
        if file is not None and self.preset is None:
            return task, recorded_config(file, task)
        return task, config_for(task, self.preset)


@grouped
def train(
    *,
    subject: Subject,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Run folder.", show_default="the genotype's; runs/<task>-<fusion>"
        ),
    ] = None,
    settings: TrainSettings,
    stage: StageOptions,
    as_json: Json = False,
) -> None:
    """Train the network of a genotype, or a hand-made fusion, with its backbones; test it once.

    Trains on the train and validation parts for a fixed number of epochs, then reads the test part
    once. To train with another seed, give another folder with --run.

    Example: bmnas train --genotype runs/digits/genotype.json
    """
    from bmnas.machine.distributed import is_rank_zero
    from bmnas.machine.progress import Bars
    from bmnas.pipeline.train import train as run_train
    from bmnas.pipeline.train import train_fusion

    existing = stage.existing
    file = subject.file()
    if settings.unimodal_logits:
        _require_taken(file)
    task, config = subject.load(file)
    options: dict[str, Any] = {
        "run": run,
        "config": config.override("train", **dataclasses.asdict(settings)),
        "existing": existing,
        "backbones": stage.backbones,
        "runtime": stage.runtime(),
        "progress": Bars(),
    }
    if file is None:
        result = train_fusion(subject.fusion or "", task, seed=subject.seed or 0, **options)
    else:
        result = run_train(file, task, seed=subject.seed, **options)
    if is_rank_zero():
        _print(result, task, as_json)


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


def _print(result: TrainResult, task: Task, as_json: bool) -> None:
    if as_json:
        facts = {
            "run": str(result.run),
            "network": str(result.network),
            "metrics": dict(result.metrics),
        }
        print_json(facts)
        return

    from bmnas.report import load_run
    from bmnas.report.tables import print_tables, run_tables

    print_tables(run_tables(load_run(result.run)))
    file = result.run / "genotype.json"
    what = {"run": result.run} if result.genotype is None else {"genotype": file}
    next_command("export", **what, task=task_again(task.source))
