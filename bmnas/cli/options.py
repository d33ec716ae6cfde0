"""Options that several commands share, declared once: single ones, and groups of them.

A group is a dataclass whose fields are options. A command that is decorated with ``grouped`` takes
the group as one argument, and the command line has an option for each of its fields.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bmnas.machine.errors import UserError
from bmnas.pipeline.run_folder import Existing

if TYPE_CHECKING:
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.config import Config
    from bmnas.tasks import Task

_SHAPE = "Shape of the supernet"
_BUDGET = "Budget"

TaskName = Annotated[
    str, typer.Option(help="A name (see bmnas tasks), a task.toml file, or module:attribute.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of the task's data.", show_default="where BMNAS_DATA says"
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="A preset's name (see bmnas presets), or a .toml file.", show_default="the task's own"
    ),
]
Backbones = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of trained backbones and feature cache; several runs may share one.",
        show_default="backbones in the run folder",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Use torch.compile.",
        show_default="in long runs on CUDA",
    ),
]
Cells = Annotated[int | None, typer.Option(help="Number of fusion Cells.", rich_help_panel=_SHAPE)]
Steps = Annotated[int | None, typer.Option(help="Steps in each Cell.", rich_help_panel=_SHAPE)]
Channels = Annotated[
    int | None, typer.Option(help="Channels of every fused feature.", rich_help_panel=_SHAPE)
]
Length = Annotated[
    int | None,
    typer.Option(help="Positions that every feature is pooled to.", rich_help_panel=_SHAPE),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs of the search.", rich_help_panel=_BUDGET)]
BatchSize = Annotated[int | None, typer.Option(help="Samples per batch.", rich_help_panel=_BUDGET)]
CacheDtype = Annotated[
    str | None,
    typer.Option(
        help="Number type of the feature cache: float32, float16 or bfloat16.",
        rich_help_panel=_BUDGET,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Number type of matrix products in Algorithm 1: float32, or bfloat16 where supported.",
        rich_help_panel=_BUDGET,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True)
class TaskOptions:
    """The task and its settings."""

    task: TaskName = "digits"
    data: Data = None
    preset: Preset = None

    def load(self) -> tuple[Task, Config]:
        """Return the task and its settings; raises UserError when one is not to be had."""
        from bmnas.pipeline.config import config_for
        from bmnas.tasks import load_task

        task = load_task(self.task, self.data)
        return task, config_for(task, self.preset)


@dataclass(frozen=True)
class SupernetSettings:
    """Values of section ``[search]`` that Algorithm 1 reads and the command line may change."""

    cells: Cells = None
    steps: Steps = None
    channels: Channels = None
    length: Length = None
    epochs: Epochs = None
    batch_size: BatchSize = None
    rerank: Annotated[
        int | None,
        typer.Option(
            help="Genotypes that Algorithm 1's own is compared with by short trainings; 0: none, "
            "as in the paper.",
            rich_help_panel=_BUDGET,
        ),
    ] = None
    cache_dtype: CacheDtype = None
    precision: Precision = None


@dataclass(frozen=True)
class SearchSettings(SupernetSettings):
    """Values of section ``[search]`` that the command line may change."""

    candidates: Annotated[
        int | None,
        typer.Option(help="Networks that strategy random trains.", rich_help_panel=_BUDGET),
    ] = None


@dataclass(frozen=True)
class TrainSettings:
    """Values of section ``[train]`` that the command line may change."""

    epochs: Annotated[int | None, typer.Option(help="Epochs of the training.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Samples per batch.")] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Probability from which a label of a multilabel task is given.",
            show_default="0.5",
        ),
    ] = None
    freeze_backbones: Annotated[
        bool | None,
        typer.Option(
            "--freeze-backbones/--train-backbones",
            help="Train the fusion network alone, or the backbones with it.",
            show_default="the preset's",
        ),
    ] = None
    unimodal_logits: Annotated[
        bool | None,
        typer.Option(
            help="Add the unimodal networks' logits to those of a found network.",
            show_default="the preset's",
        ),
    ] = None


@dataclass(frozen=True)
class StageOptions:
    """Where a search or a training runs, and what becomes of results that are there already."""

    backbones: Backbones = None
    device: Device = "auto"
    compile_networks: Compile = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = (
        False
    )
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what the run folder holds and start anew.")
    ] = False

    @property
    def existing(self) -> Existing:
        """What to do with results that are there; both options at once raise UserError."""
        if self.resume and self.overwrite:
            raise UserError("received --resume and --overwrite, expected at most one of them")
        return "resume" if self.resume else "overwrite" if self.overwrite else "refuse"

    def runtime(self) -> Runtime:
        """Return the device, and whether networks are compiled on it."""
        from bmnas.machine.runtime import Runtime

        return Runtime.choose(self.device, self.compile_networks)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` with an option for each field of its arguments that are dataclasses."""
    groups: dict[str, tuple[type[Any], list[inspect.Parameter]]] = {}
    parameters = []
    for parameter in _parameters(command):
        if dataclasses.is_dataclass(parameter.annotation):
            kind: Any = parameter.annotation
            groups[parameter.name] = (kind, _parameters(kind))
        parameters += groups[parameter.name][1] if parameter.name in groups else [parameter]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, (kind, own) in groups.items():
            values[name] = kind(**{option.name: values.pop(option.name) for option in own})
        command(**values)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _parameters(called: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function or dataclass, as keywords with real annotations."""
    hints = typing.get_type_hints(called, include_extras=True)
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(called).parameters.items()
    ]
