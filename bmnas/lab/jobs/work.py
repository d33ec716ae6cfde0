"""What a process does for one order; stopped at any moment, it goes on there the next time."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bmnas.lab.jobs.job import BACKBONES, SEARCHED, Order
from bmnas.machine.files import atomic_folder, atomic_path
from bmnas.machine.folder_lock import lock_folders
from bmnas.machine.runtime import Runtime
from bmnas.pipeline.config import Config
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.search import search
from bmnas.pipeline.train import train, train_fusion
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.fusions.genotypes import (
    late_pairs,
    module_genotype,
    random_pairs,
    searched_cells,
    searched_pairs,
)
from bmnas.tasks import check_task, load_task
from bmnas.tasks.task import Task

#: Writes the bundle of a trained network into its run folder, and its latency into the metrics.
Export = Callable[[Path, Task], None]


def do_order(order: Order, export: Export) -> None:
    """Do what ``order`` says; raises UserError where the user must help."""
    source = order["source"]
    data, options = source.get("data"), source.get("options") or {}
    task = load_task(source["task"], None if data is None else Path(data), **options)
    config = Config.from_dict(order["config"], order["name"])
    config = dataclasses.replace(config, preset=order["preset"])
    if order["way"] == BACKBONES:
        _prepare_backbones(order, task, config)
    else:
        _do_stages(order, task, config, export)


def _prepare_backbones(order: Order, task: Task, config: Config) -> None:
    check_task(task)
    folder = Path(order["backbones"])
    context = RunContext.choose(
        Run(folder.parent),
        task,
        config,
        order["seed"],
        backbones=folder,
        runtime=Runtime.choose(order["device"]),
    )
    with lock_folders(folder):
        networks = unimodal_networks(context)
        backbones = {name: found.backbone for name, found in networks.items()}
        for length, dtype in order["caches"]:
            context.features(backbones, ("train", "validation"), length, dtype=dtype)


def _do_stages(order: Order, task: Task, config: Config, export: Export) -> None:
    run, (kind, _, name) = Run(Path(order["run"])), order["way"].partition(" ")
    _adopt(Path(order["backbones"]), run.backbones)
    options: dict[str, Any] = {
        "run": run.path,
        "config": config,
        "seed": order["seed"],
        "existing": "resume",
        "runtime": Runtime.choose(order["device"]),
    }
    if kind == "search":
        search(task, strategy=name, space=order["space"], **options)
    elif kind == "module" and not run.genotype.is_file():
        found = Genotype.load(Path(order["found"]))
        _module(name, found, config, order["seed"]).save(run.genotype)
    if "train" in order["stages"]:
        if kind == "fusion":
            train_fusion(name, task, **options)
        else:
            train(run.genotype, task, **options)
    if "export" in order["stages"]:
        export(run.path, task)


def _module(name: str, found: Genotype, config: Config, seed: int) -> Genotype:
    """Return the genotype of ``MODULE/PAIRS``: a known module on some pairs of features."""
    module, _, kind = name.partition("/")
    if kind == "late":
        pairs = late_pairs(found.features)
    elif kind == "random":
        pairs = random_pairs(found.features, config.search.cells, seed)
    else:
        pairs = searched_pairs(found)
    if module == SEARCHED:
        return searched_cells(found, pairs, pairs_name=kind)
    shape = {"channels": config.search.channels, "length": config.search.length}
    return module_genotype(module, pairs, found.features, **shape, pairs_name=kind)


def _adopt(shared: Path, own: Path) -> None:
    """Give ``own`` the backbones and features of ``shared``, as links where the disk has them.

    Not ``shared`` itself: a run locks its folder of backbones, and jobs run side by side.
    """
    own.mkdir(parents=True, exist_ok=True)
    for path in shared.glob("*.safetensors"):
        if not (own / path.name).exists():
            with atomic_path(own / path.name) as aside:
                aside.unlink()
                _link(path, aside)
    for entry in (shared / "features").glob("*-*"):
        if not entry.name.startswith(".") and not (own / "features" / entry.name).exists():
            with atomic_folder(own / "features" / entry.name) as aside:
                for path in entry.iterdir():
                    _link(path, aside / path.name)


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(path, copy)
