"""``bmnas plan``: what a search will cost, before it is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from bmnas.cli.options import Compile, Data, Device, Json, Preset, SearchSettings, grouped
from bmnas.cli.output import print_json
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config, config_for, load_preset
from bmnas.report.metrics import STAGES
from bmnas.report.tables import DASH, TextTable, print_tables
from bmnas.spaces.registry import space_named
from bmnas.strategies import strategy_named
from bmnas.tasks import Task, load_task

if TYPE_CHECKING:
    from bmnas.lab.cards import CardEstimate
    from bmnas.lab.planning import Plan

_LARGEST = 65536  # as many channels as a genotype's file may have
_VALIDATION = 0.2  # of the samples, where there is no task yet


@dataclass(frozen=True)
class PlannedData:
    """What is searched on: a task, or so many samples and features."""

    task: Annotated[
        str | None,
        Option(
            help="A name (see bmnas tasks), a task.toml file, or module:attribute; by default "
            "digits, unless there are --samples."
        ),
    ] = None
    data: Data = None
    samples: Annotated[
        int | None,
        Option(help="Without a task: number of samples in train and validation, 4 to 1."),
    ] = None
    features: Annotated[
        str | None,
        Option(
            help="Without a task: channels of the features, as 512,1024,…; by default those that "
            "the preset is for."
        ),
    ] = None

    def load(self) -> Task | None:
        """Return the task, None where there are samples instead; raises UserError for both."""
        if self.samples is None and self.features is None:
            return load_task(self.task or "digits", self.data)
        given = "samples" if self.samples is not None else "features"
        if self.task is not None or self.data is not None:
            raise UserError(
                f"received a task and --{given}, which a task says itself: leave one out"
            )
        if self.samples is None:
            raise UserError(
                "received --features without --samples, expected how many there will be"
            )
        return None

    def channels(self, config: Config) -> list[int]:
        """Return the channels of the features, by default those that the preset is for."""
        text = config.promise.get("features") if self.features is None else self.features
        if text is None:
            raise UserError(
                "nothing says which features there are, as presets of the paper do: give the "
                "channels of yours with --features 512,1024,…, or a task with --task"
            )
        words = [word.strip() for word in text.split(",")]
        if len(words) < 2 or not all(w.isdecimal() and 1 <= int(w) <= _LARGEST for w in words):
            raise UserError(
                f"--features: received {text!r}, expected the channels of two features or more, "
                f"each from 1 to {_LARGEST}, as 512,1024,…"
            )
        return [int(word) for word in words]


@grouped
def plan(
    *,
    given: PlannedData,
    run: Annotated[Path, Option(help="Future run folder; the cache lies on its disk.")] = Path(
        "runs"
    ),
    preset: Preset = None,
    settings: SearchSettings,
    strategy: Annotated[
        Literal["bmnas", "mmnas"], Option(help="What searches; mmnas needs a task.")
    ] = "bmnas",
    seeds: Annotated[int, Option(help="Number of seeds to search with.")] = 1,
    device: Device = "auto",
    compile_networks: Compile = None,
    as_json: Json = False,
) -> None:
    """Estimate memory, disk and time of a search on this machine, in about ten seconds.

    Of strategy mmnas it takes minutes, as its supernet has to judge hundreds of networks.
    Part of an epoch is run. With --samples no data are needed; with a task its backbones and
    their features are timed too. Estimates hold within a factor of two for a machine that is as
    busy as now, and has the memory to read the cache from the disk once; several seeds are counted
    one after another. What Algorithm 1 of bmnas would take on common GPUs is arithmetic: half of
    their peaks in float32, 10 microseconds to launch a kernel; without torch.compile.

    Example: bmnas plan --preset ntu-1 --samples 40000
    """
    from bmnas.lab.cards import on_cards
    from bmnas.lab.planning import plan_features, plan_task
    from bmnas.machine.costs import hardware
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.search import check_seeds

    task = given.load()
    config = _config(task, preset, strategy).override("search", **settings.given(strategy))
    check_seeds(seeds, strategy)
    runtime = Runtime.choose(device, compile_networks)
    if task is not None:
        found = plan_task(task, config, runtime, run, strategy=strategy, seeds=seeds)
    else:
        samples = given.samples or 0
        held_out = round(_VALIDATION * samples)
        parts = (samples - held_out, held_out)
        found = plan_features(given.channels(config), parts, config, runtime, run, seeds=seeds)
    cards = on_cards(found) if strategy == "bmnas" else []
    if as_json:
        machine, by_card = hardware(runtime.device), [asdict(card) for card in cards]
        of_plan = {"preset": config.preset, **asdict(found)}
        print_json({**of_plan, "hardware": machine, "arithmetic": by_card})
        return
    print_tables([*_tables(found), *([_cards_table(cards)] if cards else [])])
    if task is None:
        typer.echo("note: without a task there are no backbones and features to time", err=True)
    if found.disk["free_bytes"] < found.cache_bytes:
        typer.echo(
            "note: the feature cache finds no room on the disk: give --run a folder on another",
            err=True,
        )


def _config(task: Task | None, preset: str | None, strategy: str) -> Config:
    """Return the settings that are planned with; raises UserError for mmnas without a task."""
    if task is not None:
        return config_for(task, preset, space_named(strategy_named(strategy).SPACE))
    if strategy == "mmnas":
        raise UserError(
            "received --samples with --strategy mmnas, expected a task: what it costs depends on "
            "the words and regions of the samples"
        )
    return Config() if preset is None else load_preset(preset)


def _tables(plan: Plan) -> list[TextTable]:
    needed, cache = plan.memory["needed_bytes"], plan.cache_bytes
    sizes = [
        *((f"samples, {part}", f"{count:,}") for part, count in plan.samples.items()),
        ("features", f"{len(plan.features)}"),
        ("feature cache on disk", _size(cache)),
        ("disk that is free", _size(plan.disk["free_bytes"])),
        ("memory, without the cache", _size(needed)),
        ("memory, to read the cache once", _size(needed + cache)),
    ]
    if "device_bytes" in plan.memory:
        sizes.append(("memory of the device", _size(plan.memory["device_bytes"])))
    time = tuple(
        (key.replace("_", " "), f"{plan.seconds[key]:,.1f}", _clock(plan.seconds[key]))
        for key in STAGES
        if plan.seconds.get(key)
    )
    return [
        TextTable("Size", ("what", "estimate"), tuple(sizes)),
        TextTable("Time", ("stage", "seconds", "h:min:s"), time),
    ]


def _cards_table(cards: Sequence[CardEstimate]) -> TextTable:
    rows = tuple(
        (
            card.name,
            f"{card.arithmetic_ms:.1f}",
            f"{card.launches_ms:.1f}",
            f"{card.copying_ms:.1f}" if card.copying_ms else DASH,
            _clock(card.seconds),
            _size(card.bytes),
        )
        for card in cards
    )
    columns = ("GPU", "arithmetic, ms", "launches, ms", "copying, ms", "h:min:s", "memory")
    title = "Algorithm 1 elsewhere: not measured; a step takes the longest of its times"
    return TextTable(title, columns, rows).measured()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
