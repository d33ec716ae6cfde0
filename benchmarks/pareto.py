"""Is the front of ``search --pareto`` better than that of random search at equal cost?

    python -m benchmarks.pareto TASK --backbones DIR DIR --out FILE.json

``DIR`` are folders of trained backbones, of seed 0, 1 and so on. With every seed strategy bmnas
searches for a front, and random search with as many candidates as the same processor seconds train;
both have the same backbones and the same table of latencies.
Fronts are compared by hypervolume: the share that they dominate of the box between the best of each
value, over both fronts, and a corner 10 % beyond the worst. Scores are of validation; with
``--train`` every point is trained to the end, and its score on the test part counts too. Searches
that are done are read. Prints a Markdown table and writes FILE.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import bmnas_export
import numpy as np
import torch

import bmnas
from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import write_json
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.latency import LatencyTable
from bmnas.pipeline.multimodal import channels_of
from bmnas.pipeline.network_costs import NetworkCosts
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.report.metrics import RunMetrics
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.strategies.target import Target

_CPU = bmnas.Runtime(torch.device("cpu"), compile=False)
_RATE = 4, 24  # candidates of two searches, which say what one more costs
_BEYOND = 0.1
_DRAWN = 200  # networks, among which all parts come up


def main() -> None:
    """Search both ways with every seed; print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task")
    parser.add_argument("--backbones", type=Path, nargs="+", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/pareto"))
    parser.add_argument("--train", action="store_true", help="train every point, test it")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    task = bmnas.load_task(options.task)
    config = config_for(task)
    table = options.runs / "latencies.json"
    _time_parts(task, config, options.backbones[0], table)

    def searched(name: str, strategy: str, seed: int, candidates: int = 1) -> Path:
        run: Path = options.runs / f"{name}-{seed}"
        run.mkdir(parents=True, exist_ok=True)
        if table.is_file() and not (run / "latencies.json").is_file():
            shutil.copy(table, run)
        bmnas.search(
            task,
            run=run,
            strategy=strategy,
            seed=seed,
            config=config.override("search", candidates=candidates),
            backbones=options.backbones[seed],
            target=Target(timer=bmnas_export.time_module, pareto=True),
            existing="resume",
            runtime=_CPU,
        )
        shutil.copy(run / "latencies.json", table)
        return run

    seeds = []
    for seed in range(len(options.backbones)):
        few, many = (_seconds(searched(f"rate-{n}", "random", seed, n)) for n in _RATE)
        ours = searched("bmnas", "bmnas", seed)
        more = (_seconds(ours) - few) / (many - few)
        count = math.ceil(_RATE[0] + more * (_RATE[1] - _RATE[0]))
        runs = {"bmnas": ours, "random": searched("random", "random", seed, count)}
        fronts = {name: _front(run) for name, run in runs.items()}
        found: dict[str, Any] = {
            "seed": seed,
            "candidates": count,
            "processor_seconds": {name: _seconds(run) for name, run in runs.items()},
            "fronts": fronts,
            "validation": _hypervolumes(fronts),
        }
        if options.train:
            tested = {name: _tested(run, fronts[name], task) for name, run in runs.items()}
            found |= {"tested": tested, "test": _hypervolumes(tested)}
        seeds.append(found)
        print(seed, count, found["processor_seconds"], found["validation"], found.get("test"))
    write_json(
        options.out,
        {
            "date": datetime.date.today().isoformat(),
            "task": options.task,
            "hardware": hardware(),
            "versions": versions("onnxruntime"),
            "seeds": seeds,
        },
    )
    print("| seed | points | hypervolume bmnas | random |\n|---|---|---|---|")
    for found in seeds:
        sizes = " and ".join(str(len(points)) for points in found["fronts"].values())
        own = found["validation"]
        print(f"| {found['seed']} | {sizes} | {own['bmnas']:.3f} | {own['random']:.3f} |")


def _time_parts(task: bmnas.Task, config: Config, backbones: Path, table: Path) -> None:
    """Time what candidates consist of: exporting is not searching, and would count as that."""
    context = RunContext(Run(table.parent), task, config, 0, backbones=backbones, runtime=_CPU)
    networks = {name: found.backbone for name, found in unimodal_networks(context).items()}
    known = LatencyTable(table, bmnas_export.time_module)
    costs = NetworkCosts(task, networks, context.head, known)
    space = CellSpace.of(list(channels_of(networks)), dataclasses.asdict(config.search))
    sizes, draw = (config.search.channels, config.search.length), Random("parts")
    drawn = [space.sample(draw) for _ in range(_DRAWN)]
    for found in (*drawn, *(NamedFusion(name, *sizes) for name in FUSIONS)):
        for heads in (True, False):
            costs.predict(found, heads=heads)


def _metrics(run: Path) -> RunMetrics:
    return RunMetrics.load(run / "metrics.json")


def _seconds(run: Path) -> float:
    return float(_metrics(run).processor_seconds["search"])


def _front(run: Path) -> list[tuple[float, float, float]]:
    """Return error, latency and weights of every point."""
    search = _metrics(run).search
    assert search is not None
    return [(1 - p.score, p.latency_ms, float(p.parameters)) for p in search.front]


def _tested(
    run: Path, points: Sequence[tuple[float, float, float]], task: bmnas.Task
) -> list[tuple[float, float, float]]:
    """Return the same with the error on the test part, after a whole training."""
    found = []
    for number, (_, latency, parameters) in enumerate(points, start=1):
        file = run / "front" / str(number) / "genotype.json"
        trained = bmnas.train(file, task, existing="resume", runtime=_CPU)
        found.append((1 - trained.score, latency, parameters))
    return found


def _hypervolumes(fronts: dict[str, list[tuple[float, float, float]]]) -> dict[str, float]:
    """Return the share of the box around all fronts that each dominates."""
    every = np.array([point for points in fronts.values() for point in points])
    low, high = every.min(0), every.max(0)
    span = np.where(high > low, high - low, 1.0)
    whole = (1 + _BEYOND) ** every.shape[1]
    return {
        name: hypervolume((np.array(points) - low) / span, 1 + _BEYOND) / whole
        for name, points in fronts.items()
    }


def hypervolume(points: np.ndarray[Any, Any], corner: float) -> float:
    """Return the volume that ``points`` (n, d), to be small, dominate up to ``corner`` on all axes.

    Slice by slice along the last axis (Zitzler and Thiele, IEEE TEC 1999).
    """
    points = points[(points < corner).all(1)]
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(corner - points.min())
    heights = np.append(np.unique(points[:, -1]), corner)
    return sum(
        float(above - below) * hypervolume(points[points[:, -1] <= below, :-1], corner)
        for below, above in pairwise(heights)
    )


if __name__ == "__main__":
    main()
