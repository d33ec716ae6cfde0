"""``bmnas plan``: what a search will cost, before it is paid for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bmnas.cli.options import Compile, Data, Device, Json, Preset, SupernetSettings, grouped
from bmnas.cli.output import print_json
from bmnas.machine.errors import UserError

if TYPE_CHECKING:
    from bmnas.lab.planning import Plan
    from bmnas.pipeline.config import Config
    from bmnas.report.tables import TextTable

_NO_TASK = "Without a task"


@dataclass(frozen=True)
class PlannedData:
    """What is searched on: a task, or how many samples and features there will be."""

    task: Annotated[
        str | None,
        typer.Option(
            help="A name (see bmnas tasks), a task.toml file, or module:attribute.",
            show_default="digits, unless there are --samples",
        ),
    ] = None
    data: Data = None
    samples: Annotated[
        int | None,
        typer.Option(help="Number of samples in train and validation.", rich_help_panel=_NO_TASK),
    ] = None
    features: Annotated[
        str | None,
        typer.Option(
            help="Channels of the features, as 512,1024,…",
            show_default="those that the preset is for",
            rich_help_panel=_NO_TASK,
        ),
    ] = None
    validation: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the samples in validation.",
            show_default="0.2",
            rich_help_panel=_NO_TASK,
        ),
    ] = None

    def require_one(self) -> None:
        """Raise UserError unless there is either a task or a number of samples."""
        for name in ("samples", "features", "validation"):
            if getattr(self, name) is None:
                continue
            if self.task is not None or self.data is not None:
                raise UserError(
                    f"received a task and --{name}, which a task says itself: leave one out"
                )
            if self.samples is None:
                raise UserError(
                    f"received --{name} without --samples, expected how many there will be"
                )


@grouped
def plan(
    *,
    given: PlannedData,
    run: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Future run folder; its disk is the one that is timed."),
    ] = Path("runs"),
    preset: Preset = None,
    settings: SupernetSettings,
    seeds: Annotated[int, typer.Option(help="Number of seeds to search with.")] = 1,
    device: Device = "auto",
    compile_networks: Compile = None,
    as_json: Json = False,
) -> None:
    """Estimate memory, disk and time of a search on this machine, in about ten seconds.

    Part of an epoch is run. With --samples no data are needed; with a task its backbones and
    their features are timed too. Estimates hold within a factor of two for a machine that is as
    busy as now; several seeds are counted one after another.

    Example: bmnas plan --preset ntu-1 --samples 40000
    """
    from bmnas.lab.planning import plan_features, plan_task
    from bmnas.lab.planning.workload import feature_channels
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.config import load_preset
    from bmnas.pipeline.search import check_seeds
    from bmnas.tasks import load_task

    given.require_one()
    task = None if given.samples is not None else load_task(given.task or "digits", given.data)
    name = preset or ("default" if task is None else task.preset)
    config = load_preset(name).override("search", **asdict(settings))
    check_seeds(seeds, "bmnas")
    runtime = Runtime.choose(device, compile_networks)
    if task is not None:
        found = plan_task(task, config, runtime, run, seeds=seeds)
    else:
        assert given.samples is not None
        share = 0.2 if given.validation is None else given.validation
        sizes = feature_channels(given.features, config)
        found = plan_features(sizes, given.samples, share, config, runtime, run, seeds=seeds)
    _print(found, config, runtime.device.type, as_json)


def _print(plan: Plan, config: Config, device: str, as_json: bool) -> None:
    import torch

    from bmnas.machine.costs import hardware
    from bmnas.report.tables import print_tables

    machine = hardware(torch.device(device))
    if as_json:
        print_json({"preset": config.preset, **plan.to_dict(), "hardware": machine})
        return
    print_tables(_tables(plan))
    for note in _notes(plan):
        typer.echo(f"note: {note}", err=True)
    threads = f"{machine['processor']}, {machine['threads']} threads"
    typer.echo(
        f"Measured in {plan.calibration:.0f} s on {machine.get('accelerator', threads)}", err=True
    )


def _tables(plan: Plan) -> list[TextTable]:
    from bmnas.report.tables import STAGES, TextTable

    work = plan.workload
    time = tuple(
        (name, f"{plan.seconds[key]:,.1f}", _hours(plan.seconds[key]))
        for key, name in STAGES.items()
        if plan.seconds.get(key)
    )
    sizes = [
        ("samples, train", f"{work.train:,}"),
        ("samples, validation", f"{work.validation:,}"),
        ("features", f"{len(work.channels)}"),
        ("feature cache on disk", _size(work.cache_bytes)),
        ("memory, without the cache", _size(plan.needed)),
        ("memory, with what is mapped of it", _size(plan.resident)),
        ("memory that is free", _size(plan.available)),
        ("disk that is free", _size(plan.free)),
        ("disk, writing, a second", _size(plan.write)),
        ("disk, reading rows, a second", _size(plan.read)),
    ]
    if plan.device is not None:
        sizes.insert(6, ("memory of the device", _size(plan.device)))
    return [
        TextTable("Size", ("what", "estimate"), tuple(sizes)),
        TextTable("Time", ("stage", "seconds", "h:min:s"), time),
    ]


def _notes(plan: Plan) -> list[str]:
    notes = []
    if "backbones" not in plan.seconds:
        notes.append(
            "without a task there are no backbones to time: extraction is the writing of the cache "
            "alone"
        )
    if plan.free < plan.workload.cache_bytes:
        notes.append("the feature cache finds no room on the disk: give --run a folder on another")
    if plan.missing:
        notes.append(
            f"{plan.missing:.0%} of the feature cache finds no room in memory and is read "
            "from the disk in every pass"
        )
    return notes


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
