"""Options that ``search`` and ``train`` share, and what they stand for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bmnas.machine.errors import UserError
from bmnas.pipeline.run_folder import Existing

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of the task's data.", show_default="where BMNAS_DATA says"
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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Use torch.compile.",
        show_default="in long runs on CUDA",
    ),
]
CacheDtype = Annotated[
    str | None,
    typer.Option(
        help="Type of the feature cache: float32, float16 or bfloat16.", rich_help_panel="Budget"
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Of the products of Algorithm 1: float32, or bfloat16 where the processor has it.",
        rich_help_panel="Budget",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run was stopped.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete what the run folder holds, start anew.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def existing_runs(resume: bool, overwrite: bool) -> Existing:
    """Return what to do with results that are there; both options at once raise UserError."""
    if resume and overwrite:
        raise UserError("received --resume and --overwrite, expected at most one of them")
    return "resume" if resume else "overwrite" if overwrite else "refuse"


def task_again(source: Mapping[str, Any]) -> str:
    """Return the ``--task`` that the next command needs: none where the run's record is enough."""
    from bmnas.tasks import reloadable

    name = source.get("task")
    return "" if name is None or reloadable(source) else f" --task {shlex.quote(name)}"
