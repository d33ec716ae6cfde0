"""What a search will cost on this machine: a short one is run, and its seconds are multiplied."""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.backbones import Backbone
from bmnas.features.cache import room
from bmnas.features.files import cache_bytes
from bmnas.features.samples import batches_per_epoch
from bmnas.lab.amounts import HEADS, rows_used, stage_amounts
from bmnas.lab.cards import CLASSES
from bmnas.machine.costs import COMPILE
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import Runtime, cores
from bmnas.pipeline.config import Config, fitted_config
from bmnas.pipeline.context import RunContext, check_outputs, worded
from bmnas.pipeline.multimodal import channels_of
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.search import run_stages
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.report.metrics import MemoryPeak, RunMetrics
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.registry import space_named
from bmnas.spaces.space import SearchSpace
from bmnas.strategies import STRATEGIES
from bmnas.strategies.bmnas import BMNAS
from bmnas.strategies.problem import search_steps
from bmnas.strategies.settings import SearchConfig
from bmnas.strategies.strategy import Strategy
from bmnas.tasks import check_task
from bmnas.tasks.rows import read_rows
from bmnas.tasks.task import Modality, Task

_BUDGET = 6.0  # seconds of the run that counts
_FEW = 2  # batches of the runs before it
_EPOCHS = 3  # of a short search
#: How much longer or shorter than by default trainings may be, and how near is near enough.
_EFFORTS, _CLOSE = (1 / 8, 8.0), 1.05


@dataclass(frozen=True)
class Plan:
    """What a search is expected to cost; ``seconds`` by the names that metrics.json has.

    ``samples`` are those of train and validation, ``features`` the channels C_raw of each. Without
    a task there are no seconds of backbones and extraction. ``memory`` has ``needed_bytes``, the
    peak without the cache, and with an accelerator ``device_bytes``; ``disk`` has ``free_bytes``.
    """

    samples: Mapping[str, int]
    features: Mapping[str, int]
    search: SearchConfig
    seeds: int
    cache_bytes: int
    memory: Mapping[str, int]
    seconds: Mapping[str, float]
    disk: Mapping[str, int]


def plan_task(
    task: Task,
    config: Config,
    runtime: Runtime,
    near: Path,
    *,
    strategy: str = "bmnas",
    seeds: int = 1,
) -> Plan:
    """Return what a search for ``task`` will cost on this machine, or ``seeds`` at once.

    ``strategy`` is one that trains a supernet.

    Takes about ten seconds: backbones, extraction and search are run on part of the samples, in a
    folder beside ``near``, the future run folder, which is removed. Backbones are timed as if none
    were there yet. Reads no test data. Raises UserError when the task cannot be used.
    """
    check_task(task)
    method = STRATEGIES[strategy]
    space = space_named(method.SPACE)
    check_outputs(task, space)
    return _plan(worded(task, space), config, runtime, near, seeds, method)


def config_within(
    task: Task,
    minutes: float,
    runtime: Runtime,
    near: Path,
    space: type[SearchSpace[Any]] = CellSpace,
) -> Config:
    """Return settings with which search in ``space`` and training together take about ``minutes``.

    They are those that follow from the task, all trainings shorter or longer by one factor from
    ``_EFFORTS``, which a short search like that of ``plan_task`` finds; it counts as well. A step
    of the final training is taken for one of a short training. Raises UserError for a time
    that is not positive, and where the least takes more.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--budget: received {minutes}, expected minutes above 0")
    check_task(task)
    check_outputs(task, space)
    task, started = worded(task, space), time.perf_counter()
    # Any search in a space is taken for that with a supernet.
    method = next(
        (own for own in STRATEGIES.values() if own.TRAINS_SUPERNET and own.SPACE == space.NAME),
        BMNAS,
    )
    timing = _timed(task, fitted_config(task, space=space), runtime, near, method)
    left = 60 * minutes - (time.perf_counter() - started)

    def seconds(effort: float) -> float:
        config = fitted_config(task, effort, space)
        amounts = stage_amounts(task, config, method=method)
        planned = multiplied(timing.spent, timing.amounts, amounts)
        # It is trained twice, on train to be judged and then on both parts.
        samples = len(task.samples("train")) + len(task.samples("train", "validation"))
        networks = config.search.ensemble  # trained side by side
        trained = networks * config.train.epochs * samples / timing.samples_per_second
        return planned["total"] + trained

    low, high = _EFFORTS
    if seconds(low) > left:
        least = (seconds(low) + 60 * minutes - left) / 60
        raise UserError(
            f"--budget: received {minutes:g} minutes, expected {math.ceil(10 * least) / 10:g} or "
            "more: on this machine the shortest trainings of use take that"
        )
    while high / low > _CLOSE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if seconds(middle) <= left else (low, middle)
    return fitted_config(task, low, space)


def plan_features(
    channels: Sequence[int],
    parts: tuple[int, int],
    config: Config,
    runtime: Runtime,
    near: Path,
    *,
    seeds: int = 1,
) -> Plan:
    """Return what the search alone will cost where there are no data yet; see ``plan_task``.

    ``channels`` are C_raw of the features, ``parts`` the numbers of samples of train and
    validation. Raises UserError for less than two of either.
    """
    if min(parts) < 2:
        raise UserError(
            f"--samples: received {sum(parts)} samples, of which {parts[1]} for validation; "
            "expected at least 2 for each part"
        )
    plan = _plan(made_up_task(channels, parts), config, runtime, near, seeds)
    skipped = ("backbones", "extraction", "total")
    seconds = {name: spent for name, spent in plan.seconds.items() if name not in skipped}
    return replace(plan, seconds={**seconds, "total": seconds["search"]})


class _MadeUp(nn.ModuleList):
    """A network with the features of ``channels`` that costs next to nothing."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(nn.Linear(1, count) for count in channels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self)


def made_up_task(channels: Sequence[int], parts: Sequence[int]) -> Task:
    """Return a task of two modalities with features of ``channels``, which cost next to nothing.

    ``parts`` are the numbers of samples of train, validation and, if there are three, test.
    """
    count, draw, half = sum(parts), np.random.default_rng(0), (len(channels) + 1) // 2
    modalities = []
    for name, own in (("a", channels[:half]), ("b", channels[half:])):
        rows = draw.standard_normal((count, 1), dtype=np.float32)
        features = tuple(str(number) for number in range(len(own)))
        made_up = Modality(name, "vector", rows, backbone=_MadeUp(own), features=features)
        modalities.append(made_up)
    return Task(
        "plan",
        "multiclass",
        tuple(modalities),
        labels=np.arange(count) % CLASSES,
        part=np.repeat(range(len(parts)), parts),
        class_names=tuple(map(str, range(CLASSES))),
    )


def _plan(
    task: Task,
    config: Config,
    runtime: Runtime,
    near: Path,
    seeds: int,
    method: type[Strategy] = BMNAS,
) -> Plan:
    timing = _timed(task, config, runtime, near, method)
    full = _cache_bytes(task, timing.backbones, config.search, method)
    return Plan(
        {part: len(task.samples(part)) for part in ("train", "validation")},
        channels_of(timing.backbones),
        config.search,
        seeds,
        full,
        _memory(timing.peak, timing.cache_bytes, full, runtime, seeds),
        multiplied(timing.spent, timing.amounts, stage_amounts(task, config, seeds, method)),
        {"free_bytes": timing.free_bytes},
    )


@dataclass(frozen=True)
class _Timing:
    """What a short search took: ``spent`` seconds by stage for ``amounts``, and what it left."""

    spent: Mapping[str, float]
    amounts: Mapping[str, float]
    backbones: Mapping[str, Backbone]
    samples_per_second: float  # of short trainings
    peak: MemoryPeak
    cache_bytes: int
    free_bytes: int


def _timed(
    task: Task, config: Config, runtime: Runtime, near: Path, method: type[Strategy] = BMNAS
) -> _Timing:
    # A network that was given as an object is not to be trained.
    copies = (replace(m, backbone=copy.deepcopy(m.backbone)) for m in task.modalities)
    task, search = replace(task, modalities=tuple(copies)), config.search
    train, validation = (task.samples(part) for part in ("train", "validation"))
    # A short search is compiled where the long one is.
    compiles = runtime.compiles(search_steps(search, len(train), len(validation)))
    runtime = replace(runtime, compile=compiles, pays_from=0)
    short = config.override("search", epochs=_EPOCHS, candidate_epochs=1)
    # One training a backbone, whatever its rows allow; what else there is to train is multiplied,
    # but for the linear models of texts, which take seconds.
    short = short.override("unimodal", epochs=1, folds=0, early_stopping=False, linear=False)
    runs: list[tuple[Task, dict[str, Backbone], RunMetrics, float]] = []

    def run(batches: int) -> float:
        """Run the search on so many batches of train; return the seconds that it took."""
        count = min(len(train), batches * search.batch_size)
        # In proportion to train, but a whole batch where there is one.
        least = min(search.batch_size, len(validation))
        judged = max(least, count * len(validation) // len(train))
        part = np.full(len(task.part), -1)
        part[train[:count]], part[validation[:judged]] = 0, 1
        started = time.perf_counter()
        inside = Run(folder / str(len(runs)))
        inside.path.mkdir()
        fewer = replace(task, part=part)
        context = RunContext(inside, fewer, short, 0, runtime=runtime)
        backbones, _, metrics = run_stages(context, method)
        given = [found for found in unimodal_networks(context).values() if found.pretrained]
        runs.append((fewer, backbones, metrics, sum(found.seconds for found in given)))
        return time.perf_counter() - started

    with _scratch(near) as name:
        folder = Path(name)
        most = batches_per_epoch(len(train), search.batch_size)
        few = min(_FEW, most)
        # What torch does once may take it seconds, so the first run does not count.
        run(few)
        batches = min(most, int(few * _BUDGET / max(run(few), 1e-6)))
        if batches > few:
            run(batches)
        free = shutil.disk_usage(folder).free
    fewer, backbones, metrics, heads = runs[-1]
    trained = {"backbones": metrics.seconds["backbones"] - heads, HEADS: heads}
    compiling = max(measured.seconds[COMPILE] for _, _, measured, _ in runs)
    return _Timing(
        {**metrics.seconds, **trained, COMPILE: compiling},
        stage_amounts(fewer, short, method=method),
        backbones,
        metrics.samples_per_second.get("rerank", math.inf),
        metrics.peak_memory["search"],
        _cache_bytes(fewer, backbones, search, method),
        free,
    )


def _memory(peak: MemoryPeak, part: int, full: int, runtime: Runtime, seeds: int) -> dict[str, int]:
    """Return the memory of a search from the ``peak`` of a short one; both caches in bytes."""
    # On a CPU seeds run in processes side by side.
    side_by_side = min(seeds, cores()) if runtime.device.type == "cpu" else 1
    memory = {"needed_bytes": ((peak.resident_bytes or 0) - part) * side_by_side}
    if peak.device_bytes is not None:
        there = full - part if full <= room(runtime.device) else 0
        memory["device_bytes"] = peak.device_bytes + there
    return memory


def multiplied(
    spent: Mapping[str, float], short: Mapping[str, float], long: Mapping[str, float]
) -> dict[str, float]:
    """Return the seconds of the amounts ``long``, where ``short`` took the seconds ``spent``."""
    seconds = {
        name: spent[name] * long[name] / short[name]
        for name in short
        if name in spent and short[name] and long[name]
    }
    if HEADS in seconds:
        seconds["backbones"] = seconds.get("backbones", 0.0) + seconds.pop(HEADS)
    before = ("backbones", "extraction")
    searched = sum(value for name, value in seconds.items() if name not in before)
    return {**seconds, "search": searched, "total": sum(seconds.values())}


def _cache_bytes(
    task: Task, backbones: Mapping[str, Backbone], search: SearchConfig, method: type[Strategy]
) -> int:
    rows, channels = rows_used(task), channels_of(backbones)
    lengths = dict.fromkeys(channels, search.length)
    if method.length(None, search.length) is None:
        lengths = _tokens(task, backbones)
    return sum(
        cache_bytes(rows[name.partition(".")[0]], lengths[name], own, search.cache_dtype)
        for name, own in channels.items()
    )


@torch.no_grad()
def _tokens(task: Task, backbones: Mapping[str, Backbone]) -> dict[str, int]:
    """Return how many tokens each feature has."""
    found = {}
    for name, backbone in backbones.items():
        modality, device = task.modality(name), next(backbone.parameters()).device
        row = read_rows(modality.data, modality.rows_of(task.samples("train")[:1]))
        features = backbone.eval().features(torch.from_numpy(backbone.encode(row)).to(device))
        for feature, x in zip(backbone.feature_names, features, strict=True):
            found[f"{name}.{feature}"] = math.prod(x.shape[2:])
    return found


def _scratch(near: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a folder on the disk of ``near``, for a while."""
    near = near.absolute()
    there = next(parent for parent in (near, *near.parents) if parent.is_dir())
    return tempfile.TemporaryDirectory(prefix=".bmnas-plan-", dir=there)
