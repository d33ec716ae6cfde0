"""Building a table: every network of a space trained for a short fixed budget.

The networks of a structure are trained together (``batch``), each as a candidate of a search is
(``strategies.candidates``): the same epochs, batch size, learning rates and dropout, from cached
features of frozen backbones. A batch's results are a file of their own (``training``), so that a
build that was stopped, in whatever way, goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bmnas.features.cache import FeatureCache
from bmnas.lab.tables.table import Table
from bmnas.lab.tables.training import SCORES, StoredFeatures, Work, network_groups, trained
from bmnas.machine.costs import count_parameters, hardware, measure_latency, versions
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, remove_leftovers, write_json
from bmnas.machine.folder_lock import lock_folders
from bmnas.machine.progress import Progress, Silent
from bmnas.machine.runtime import Runtime, check_seed
from bmnas.pipeline.config import Config
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.cells.space import CellSpace
from bmnas.tasks import check_task, check_test
from bmnas.tasks.task import Task
from bmnas.training.heads import head_for

_CPU = Runtime(torch.device("cpu"), compile=False)


def build_table(
    task: Task,
    out: Path,
    *,
    config: Config,
    run: Path,
    seed: int = 0,
    seeds: int = 3,
    backbones: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Table:
    """Train every network of the space of ``config.search`` on ``task`` and write ``out``.

    ``run`` is the folder of what is done so far, ``backbones`` that of trained backbones, by
    default inside it. Backbones are trained with ``seed``, networks with ``seeds`` seeds from it
    on, in ``workers`` processes of one thread. Test data is read to be put into the table. All but
    measured times is the same, bit for bit, when it is built again on the same machine, whatever
    the number of workers. Raises UserError when something given cannot be used.
    """
    check_seed(seed)
    for name, value in (("seeds", seeds), ("workers", workers)):
        if value < 1:
            raise UserError(f"--{name}: received {value}, expected 1 or more")
    if out.suffix != ".npz":
        raise UserError(f"{out}: received a name that ends otherwise, expected one in .npz")
    check_task(task)
    check_test(task)
    progress = Silent() if progress is None else progress
    context = RunContext.choose(
        Run(run), task, config, seed, backbones=backbones, runtime=_CPU, progress=progress
    )
    with lock_folders(run, context.kept):
        remove_leftovers(run / "parts")
        cache, unimodal = _features(context)
        about = {
            "task": {"name": task.name, "source": _placeless(task.source)},
            "metric": head_for(task.kind).metric,
            "features": list(cache.names),
            "classes": task.classes,
            "samples": {part: len(task.samples(part)) for part in cache.parts},
            "seed": seed,
            "preset": None if config.preset is None else Path(config.preset).name,
            **config.to_dict(),
            "unimodal_validation": unimodal,
        }
        work = _work(cache, config, run)
        _claim(run, about, cache)
        arrays = _scores(work, range(seed, seed + seeds), workers, progress)
        arrays.update(_costs(work, progress))
        # The hardware's number of threads is that of the latency.
        about.update(seeds=seeds, versions=versions(), hardware=hardware())
        table = Table(about, tuple(work.genotypes), arrays)
        table.save(out)
    return table


def _placeless(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's source without the folders of this machine: a table is passed on."""
    plain = {key: value for key, value in source.items() if key != "data"}
    name = plain.get("task")
    if isinstance(name, str) and name.endswith(".toml"):
        plain["task"] = Path(name).name
    return plain


def _work(cache: FeatureCache, config: Config, run: Path) -> Work:
    search, task = config.search, cache.task
    space = CellSpace.of(cache.names, asdict(search))
    return Work(
        genotypes=tuple(space.distinct().values()),
        features=StoredFeatures.of(cache, run / "features", search.cache_dtype),
        head=head_for(task.kind, config.train.threshold),
        config=search,
        classes=task.outputs,
        parts=run / "parts",
    )


def _scores(work: Work, seeds: range, workers: int, progress: Progress) -> dict[str, NDArray[Any]]:
    """Train what is not trained yet; return scores, losses and seconds of all networks."""
    groups = network_groups(work.genotypes, seeds)
    left = [group for group in groups if not work.part(group).exists()]
    with progress.stage("networks", sum(len(group.entries) for group in groups)) as shown:
        shown.advance(sum(len(group.entries) for group in groups if group not in left))
        for group in trained(work, left, workers):
            shown.advance(len(group.entries))
    shape = len(work.genotypes), len(seeds)
    arrays = {name: np.empty(shape) for name in (*SCORES, "seconds")}
    for group in groups:
        for name, values in work.read_part(group).items():
            arrays[name][list(group.entries), seeds.index(group.seed)] = values
    arrays["seconds"] = arrays["seconds"].mean(axis=1)
    return arrays


def _costs(work: Work, progress: Progress) -> dict[str, NDArray[Any]]:
    """Return parameters and milliseconds of every network."""
    samples = work.features.samples()["validation"]
    parameters, latency = [], []
    with progress.stage("latency", len(work.genotypes)) as shown:
        for genotype in work.genotypes:
            network = work.network(genotype).eval()
            parameters.append(count_parameters(network) - count_parameters(network.classifier))
            pooled = samples.select(network.features).batch(torch.arange(1)).inputs
            latency.append(_milliseconds(network, pooled))
            shown.advance()
    return {"parameters": np.array(parameters, dtype=np.int64), "latency_ms": np.array(latency)}


def _milliseconds(network: FusionNetwork, pooled: list[torch.Tensor]) -> float:
    def call() -> None:
        with torch.inference_mode():
            network(pooled)

    return measure_latency(call, repeats=50).median_ms


def _features(context: RunContext) -> tuple[FeatureCache, dict[str, float]]:
    """Return the features of all parts, and the validation score of each modality alone."""
    networks = unimodal_networks(context)
    cache = context.features(
        {name: found.backbone for name, found in networks.items()},
        ("train", "validation", "test"),
        context.config.search.length,
        # Not beside the backbones: the cache of a search there holds no test data.
        folder=context.folder.path / "features",
    )
    return cache, {name: found.validation for name, found in networks.items()}


def _claim(run: Path, about: Mapping[str, Any], cache: FeatureCache) -> None:
    """Take ``run`` for a table; raises UserError when it holds parts of another one."""
    labels = cache.samples(*cache.parts).labels
    depends = {
        "about": {name: value for name, value in about.items() if name != "preset"},
        "features": cache.keys,
        "labels": hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
    }
    text = json.dumps(depends, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    path = run / "tabular.json"
    if not path.exists():
        write_json(path, {"fingerprint": fingerprint, "about": about})
    found = read_json(path)
    if not isinstance(found, dict) or found.get("fingerprint") != fingerprint:
        raise UserError(
            f"{run}: holds parts of a table of other settings, backbones or data; choose another "
            "folder with --run, or delete this one"
        )
