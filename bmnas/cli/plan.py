"""``bmnas plan``: what a search will cost, before it is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bmnas.cli.options import CacheDtype, Compile, Data, Device, Json, Precision

if TYPE_CHECKING:
    from bmnas.lab.planning import Plan
    from bmnas.pipeline.config import Config
    from bmnas.report.tables import TextTable

_SHAPE = "Shape of the supernet"
_BUDGET = "Budget"
_NO_TASK = "Without a task"


def plan(
    task: Annotated[
        str | None,
        typer.Option(
            help="A name (see bmnas tasks), a task.toml, or module:attribute.",
            show_default="digits, unless there are --samples",
        ),
    ] = None,
    data: Data = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Of train and validation together.", rich_help_panel=_NO_TASK),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Channels of the features, as 512,1024,…",
            show_default="those that the preset is for",
            rich_help_panel=_NO_TASK,
        ),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Fraction of the samples.", show_default="0.2", rich_help_panel=_NO_TASK),
    ] = None,
    run: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Future run folder; its disk is the one that is timed."),
    ] = Path("runs"),
    preset: Annotated[
        str | None,
        typer.Option(
            help="A name, see bmnas presets, or a .toml file.", show_default="the task's own"
        ),
    ] = None,
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
    rerank: Annotated[
        int | None,
        typer.Option(
            help="Genotypes compared with Algorithm 1's own by short trainings.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    cache_dtype: CacheDtype = None,
    precision: Precision = None,
    seeds: Annotated[int, typer.Option(help="Searches at once.", rich_help_panel=_BUDGET)] = 1,
    device: Device = "auto",
    compile_networks: Compile = None,
    as_json: Json = False,
) -> None:
    """Estimate memory, disk and time of a search on this machine, in about ten seconds.

    Some real steps are timed. With --samples no data are needed; with a task its backbones and
    their features are timed too. Estimates hold within a factor of two for a machine that is as
    busy as now.

    Example: bmnas plan --preset ntu-1 --samples 40000
    """
    from bmnas.lab.planning import plan_features, plan_task
    from bmnas.lab.planning.workload import feature_channels
    from bmnas.machine.errors import UserError
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.config import load_preset
    from bmnas.pipeline.search import check_seeds
    from bmnas.tasks import load_task

    without = {"--samples": samples, "--features": features, "--validation": validation}
    given = [name for name, value in without.items() if value is not None]
    if given and (task is not None or data is not None):
        raise UserError(f"received a task and {given[0]}, which a task says itself: leave one out")
    if given and samples is None:
        raise UserError(f"received {given[0]} without --samples, expected how many there will be")
    loaded = None if given else load_task("digits" if task is None else task, data)
    name = preset or (loaded.preset if loaded is not None else "default")
    config = load_preset(name).override(
        "search",
        cells=cells,
        steps=steps,
        channels=channels,
        length=length,
        epochs=epochs,
        batch_size=batch_size,
        rerank=rerank,
        cache_dtype=cache_dtype,
        precision=precision,
    )
    check_seeds(seeds, "bmnas", config.search.precision)
    runtime = Runtime.choose(device, compile_networks)
    if loaded is not None:
        found = plan_task(loaded, config, runtime, run, seeds=seeds)
    else:
        assert samples is not None
        share = 0.2 if validation is None else validation
        sizes = feature_channels(features, config)
        found = plan_features(sizes, samples, share, config, runtime, run, seeds=seeds)
    _print(found, config, runtime.device.type, as_json)


def _print(plan: Plan, config: Config, device: str, as_json: bool) -> None:
    import json

    import torch

    from bmnas.machine.costs import hardware
    from bmnas.report.tables import print_tables

    machine = hardware(torch.device(device))
    if as_json:
        facts = {"preset": config.preset, **plan.to_dict(), "hardware": machine}
        print(json.dumps(facts, indent=2))
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

    work, memory, disk = plan.workload, plan.memory, plan.disk
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
        ("memory, without the cache", _size(memory.needed_bytes)),
        ("memory, with what is mapped of it", _size(memory.resident_bytes)),
        ("memory that is free", _size(memory.available_bytes)),
        ("disk that is free", _size(disk.free)),
        ("disk, writing, a second", _size(disk.write)),
        ("disk, reading rows, a second", _size(disk.read)),
    ]
    if memory.device_bytes is not None:
        sizes.insert(6, ("memory of the device", _size(memory.device_bytes)))
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
    if plan.disk.free < plan.workload.cache_bytes:
        notes.append("the feature cache finds no room on the disk: give --run a folder on another")
    if plan.memory.missing:
        notes.append(
            f"{plan.memory.missing:.0%} of the feature cache finds no room in memory and is read "
            "from the disk in every pass"
        )
    return notes


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
