"""``bmnas train``: the network of a genotype or a hand-made fusion, trained and tested."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from bmnas.cli.options import Data, Json, StageOptions, TrainSettings, grouped
from bmnas.cli.output import next_command, print_json, task_again
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.run_folder import Run, genotype_file
from bmnas.report.record import load_run
from bmnas.report.tables import print_tables, run_tables
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.registry import load_architecture, space_of, takes_unimodal_logits
from bmnas.tasks import Task, load_task, reload_task


@dataclass(frozen=True)
class Subject:
    """What is trained, on which task; by default as it was searched."""

    genotype: Annotated[
        Path | None, Option(help="What bmnas search found: a genotype.json or its run folder.")
    ] = None
    fusion: Annotated[
        str | None, Option(help="Instead: a hand-made fusion, such as gmu; see docs/fusions.md.")
    ] = None
    task: Annotated[str | None, Option(help="Task to train on; for a fusion digits.")] = None
    data: Data = None
    preset: Annotated[
        str | None, Option(help="A preset, or a .toml file; for a fusion the task's own.")
    ] = None
    seed: Annotated[
        int | None, Option(help="Seed of everything that is drawn at random; for a fusion 0.")
    ] = None

    def file(self, settings: TrainSettings) -> Path | None:
        """Return the genotype's file, None for a fusion; raises UserError for what cannot be."""
        if (self.genotype is None) == (self.fusion is None):
            found = "neither" if self.genotype is None else "both"
            raise UserError(f"received {found} of --genotype and --fusion, expected one of them")
        file = None if self.genotype is None else genotype_file(self.genotype)
        if file is not None and not file.is_file():
            raise UserError(f"{file}: no such file; make it with: bmnas search")
        # Before the task: a wrong file does not say what its task is.
        found_by_search = file is not None and takes_unimodal_logits(load_architecture(file))
        if settings.unimodal_logits and not found_by_search:
            raise UserError(
                f"--unimodal-logits: {file or self.fusion} takes none, expected Cells or a tree "
                "that a search found; leave the option out"
            )
        return file

    def load(self, file: Path | None) -> tuple[Task, Config]:
        """Return task and settings, by default those of the search that wrote ``file``."""
        from bmnas.pipeline.train import recorded_config

        if file is None or self.task is not None:
            task = load_task(self.task or "digits", self.data)
        else:
            task = reload_task(Run(file.parent).read_source(file), self.data)
        if file is not None and self.preset is None:
            return task, recorded_config(file, task)
        space = CellSpace if file is None else space_of(load_architecture(file))
        return task, config_for(task, self.preset, space)


@grouped
def train(
    *,
    subject: Subject,
    run: Annotated[
        Path | None, Option(help="Run folder, by default the genotype's or runs/<task>-<fusion>.")
    ] = None,
    settings: TrainSettings,
    stage: StageOptions,
    as_json: Json = False,
) -> None:
    """Train the network of a genotype, or a hand-made fusion; test it once.

    Trains on the train and validation parts for a fixed number of epochs, then reads the test part
    once. To train with another seed, give another folder with --run.

    Example: bmnas train --genotype runs/digits/genotype.json
    """
    from bmnas.machine.distributed import is_rank_zero
    from bmnas.pipeline.train import train as run_train
    from bmnas.pipeline.train import train_fusion

    file = subject.file(settings)
    task, config = subject.load(file)
    config = config.override("train", **dataclasses.asdict(settings))
    options: dict[str, Any] = {"run": run, "config": config, **stage.arguments()}
    if file is None:
        result = train_fusion(subject.fusion or "", task, seed=subject.seed or 0, **options)
    else:
        result = run_train(file, task, seed=subject.seed, **options)
    if not is_rank_zero():
        return
    if as_json:
        found = {"network": str(result.network), "metrics": dict(result.metrics)}
        print_json({"run": str(result.run), **found})
        return
    print_tables(run_tables(load_run(result.run).metrics))
    what = (
        {"run": result.run} if result.genotype is None else {"genotype": genotype_file(result.run)}
    )
    next_command("export", **what, **task_again(task))
