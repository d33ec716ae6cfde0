"""``bmnas pretrain``: one modality's backbone, trained by itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from bmnas.cli.options import Json, Seed, TaskOptions, WorkOptions, grouped
from bmnas.cli.output import next_command, print_facts, print_json
from bmnas.tasks import Task

if TYPE_CHECKING:
    from bmnas.pipeline.pretrain import Pretrained


@dataclass(frozen=True)
class PretrainSettings:
    """Settings of the training, by default the network's own."""

    epochs: Annotated[int | None, Option(help="Epochs of the training.")] = None
    batch_size: Annotated[int | None, Option(help="Samples per batch.")] = None
    max_lr: Annotated[float | None, Option(help="Learning rate that a cosine begins with.")] = None
    weight_decay: Annotated[float | None, Option(help="Weight decay of AdamW.")] = None


@grouped
def pretrain(
    *,
    source: TaskOptions,
    modality: Annotated[str, Option(help="The modality whose backbone is trained.")],
    weights: Annotated[
        Path | None,
        Option(
            help="Published weights to start from, such as VGG-19 of ImageNet: all of the network "
            "is trained on, by default at a tenth of the rate."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            help="File of the weights, by default where the task looks for it: "
            "DIR/weights/<modality>.safetensors, else in the run folder."
        ),
    ] = None,
    run: Annotated[
        Path | None, Option(help="Folder of the checkpoint, by default runs/<task>-<modality>.")
    ] = None,
    settings: PretrainSettings,
    seed: Seed = 0,
    stage: WorkOptions,
    as_json: Json = False,
) -> None:
    """Train one modality's backbone by itself, for weights that search and train then take.

    A network of a paper is trained about as its authors did where their program is known, else by
    a recipe of ours; any other network by the task's preset. A --preset, its section unimodal, and
    the options below win. The epoch with the best validation score is kept. Test data is not read.
    A training that was stopped goes on with --resume and ends exactly as it would have without the
    stop.

    Example: bmnas pretrain --task ntu --data DIR --modality skeleton
    """
    from bmnas.machine.distributed import is_rank_zero
    from bmnas.pipeline.pretrain import pretrain as run_pretrain

    task, config = source.load()
    task = _starting(task, modality, weights)
    path, found = run_pretrain(
        task,
        modality,
        run=run,
        out=out,
        config=config if source.preset else None,
        settings=dataclasses.asdict(settings),
        seed=seed,
        **stage.arguments(),
    )
    if is_rank_zero() and as_json:
        print_json({"weights": str(path), **dataclasses.asdict(found)})
    elif is_rank_zero():
        print_facts(_facts(path, found), f"{task.name}: {modality}")
        _say_next(task, modality, path)


def _starting(task: Task, name: str, weights: Path | None) -> Task:
    """Return the task whose modality ``name`` has ``weights``, where they are given."""
    task.modality(name)  # raises UserError where there is none
    if weights is None:
        return task
    modalities = tuple(
        dataclasses.replace(m, weights=weights) if m.name == name else m for m in task.modalities
    )
    return dataclasses.replace(task, modalities=modalities)


def _facts(path: Path, found: Pretrained) -> dict[str, object]:
    return {
        "weights": path,
        "epoch": f"{found.epoch} of {found.epochs}",
        f"train {found.metric}": found.train,
        f"validation {found.metric}": found.validation,
        "seconds": found.seconds,
    }


def _say_next(task: Task, name: str, path: Path) -> None:
    from bmnas.pipeline.pretrain import weights_folder

    source, taken = task.source, weights_folder(task, task.modality(name))
    if taken is not None and path.resolve().parent == taken:
        left = [m for m in task.modalities if not (m.weights or m.name == name)]
        again = {"task": source["task"], "data": source["data"]}
        if left:
            next_command("pretrain", **again, modality=left[0].name)
        else:
            next_command("search", **again)
        return
    place = f"below [modality.{name}] of {source['task']}"
    if not str(source.get("task", "")).endswith(".toml"):
        place = f"where modality {name} of task {task.name} is made"
    typer.echo(f'Next: say weights = "{path}" {place}', err=True)
