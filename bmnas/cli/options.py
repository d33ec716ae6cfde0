"""Options that several commands share, alone and in groups.

A group is a dataclass whose fields are options. A command that is decorated with ``grouped`` takes
the group as one argument; the first line of the group's docstring is its heading in the help.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from bmnas.machine.errors import UserError
from bmnas.machine.progress import Bars
from bmnas.pipeline.config import Config, config_for
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.space import SearchSpace
from bmnas.tasks import Task, load_task

Data = Annotated[
    Path | None, Option(help="Folder of the task's data, by default where BMNAS_DATA says.")
]
Preset = Annotated[
    str | None,
    Option(help="A preset (see bmnas presets), or a .toml file; by default the task's own."),
]
Backbones = Annotated[
    Path | None,
    Option(
        help="Folder of trained backbones and feature cache, by default in the run folder; "
        "several runs may share one."
    ),
]
Seed = Annotated[int, Option(help="Seed of everything that is drawn at random.")]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")]
Compile = Annotated[
    bool | None,
    Option(
        "--compile/--no-compile", help="Use torch.compile, by default in long searches on CUDA."
    ),
]
Json = Annotated[bool, Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True)
class TaskOptions:
    """Task."""

    task: Annotated[
        str, Option(help="A name (see bmnas tasks), a task.toml file, or module:attribute.")
    ] = "digits"
    data: Data = None
    preset: Preset = None

    def load(self, space: type[SearchSpace[Any]] = CellSpace) -> tuple[Task, Config]:
        """Return the task and its settings; raises UserError when one is not to be had."""
        task = load_task(self.task, self.data)
        return task, config_for(task, self.preset, space)


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search, by default the preset's."""

    cells: Annotated[int | None, Option(help="Number of fusion Cells.")] = None
    steps: Annotated[int | None, Option(help="Steps in each Cell.")] = None
    channels: Annotated[int | None, Option(help="Channels of every fused feature.")] = None
    length: Annotated[int | None, Option(help="Positions that every feature is pooled to.")] = None
    epochs: Annotated[int | None, Option(help="Epochs of the search.")] = None
    batch_size: Annotated[int | None, Option(help="Samples per batch.")] = None
    rerank: Annotated[
        int | None,
        Option(
            help="Genotypes that Algorithm 1's own is compared with by short trainings; 0: none, "
            "as in the paper."
        ),
    ] = None
    ensemble: Annotated[
        int | None,
        Option(help="Networks, the best of the short trainings, that are averaged."),
    ] = None
    candidates: Annotated[int | None, Option(help="Networks that strategy random trains.")] = None
    cache_dtype: Annotated[
        str | None,
        Option(help="Number type of the feature cache: float32, float16 or bfloat16."),
    ] = None
    precision: Annotated[
        str | None,
        Option(
            help="Number type of matrix products in Algorithm 1: float32, or bfloat16 where "
            "supported."
        ),
    ] = None

    def given(self, strategy: str = "bmnas", space: str | None = None) -> dict[str, Any]:
        """Return the options that were given; raises UserError for one the search ignores."""
        from bmnas.strategies import check_settings

        given = {name: v for name, v in dataclasses.asdict(self).items() if v is not None}
        check_settings(strategy, space, given)
        return given


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training, by default the preset's."""

    epochs: Annotated[int | None, Option(help="Epochs of the training.")] = None
    batch_size: Annotated[int | None, Option(help="Samples per batch.")] = None
    threshold: Annotated[
        float | None,
        Option(help="Probability from which a label of a multilabel task is given."),
    ] = None
    freeze_backbones: Annotated[
        bool | None,
        Option(
            "--freeze-backbones/--train-backbones",
            help="Train the fusion network alone, or the backbones with it.",
        ),
    ] = None
    unimodal_logits: Annotated[
        bool | None,
        Option(
            help="Add the unimodal networks' logits to those of a found network, in matching the "
            "similarity of the words they predict."
        ),
    ] = None
    precision: Annotated[
        str | None,
        Option(help="Number type of matrix products: float32, or bfloat16 where supported."),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Option(help="With trained backbones of transformers: less memory, a third more computing."),
    ] = None


@dataclass(frozen=True)
class WorkOptions:
    """Where it runs, and what becomes of results that are there."""

    device: Device = "auto"
    resume: Annotated[bool, Option("--resume", help="Continue a run that was stopped.")] = False
    overwrite: Annotated[
        bool, Option("--overwrite", help="Delete what the run folder holds and start anew.")
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Return what ``pretrain`` takes; raises UserError for what contradicts."""
        return self._arguments(compile_networks=False)

    def _arguments(self, *, compile_networks: bool | None) -> dict[str, Any]:
        from bmnas.machine.runtime import Runtime

        if self.resume and self.overwrite:
            raise UserError("received --resume and --overwrite, expected at most one of them")
        return {
            "existing": "resume" if self.resume else "overwrite" if self.overwrite else "refuse",
            "runtime": Runtime.choose(self.device, compile_networks),
            "progress": Bars(),
        }


@dataclass(frozen=True)
class StageOptions(WorkOptions):
    """Where it runs, and what becomes of results that are there."""

    backbones: Backbones = None
    compile_networks: Compile = None

    def arguments(self) -> dict[str, Any]:
        """Return what ``search`` and ``train`` take; raises UserError for what contradicts."""
        work = self._arguments(compile_networks=self.compile_networks)
        return {**work, "backbones": self.backbones}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` with an option for each field of its arguments that are dataclasses."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters = []
    for parameter in _parameters(command):
        kind = parameter.annotation
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter)
            continue
        heading = str(kind.__doc__).partition(".")[0]
        own = [p.replace(annotation=_below(heading, p.annotation)) for p in _parameters(kind)]
        groups[parameter.name] = kind, [p.name for p in own]
        parameters += own

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, (kind, own) in groups.items():
            values[name] = kind(**{option: values.pop(option) for option in own})
        command(**values)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _parameters(called: Any) -> list[inspect.Parameter]:
    """Return the parameters of a function or dataclass, as keywords with real annotations."""
    hints = typing.get_type_hints(called, include_extras=True)
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(called).parameters.items()
    ]


def _below(heading: str, annotation: Any) -> Any:
    """Return the annotation of an option that the help shows below ``heading``."""
    kind, option = typing.get_args(annotation)
    option = copy.copy(option)
    option.rich_help_panel = heading
    return Annotated[kind, option]
