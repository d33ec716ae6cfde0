"""Run folders: what a search and a training leave behind."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json
from bmnas.report.metrics import RunMetrics
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.ensembles.space import Ensemble
from bmnas.spaces.registry import architecture_from_dict, load_architecture

#: What to do with results that are there already.
Existing = Literal["refuse", "resume", "overwrite"]

#: In the order in which they are removed: after a kill in between, no genotype counts as the
#: result of new settings, and no old settings are forgotten while results of them are left.
_SEARCH_FILES = (
    # The next best genotypes are numbered.
    "genotype.json", *(f"genotype-{number}.json" for number in range(2, 6)), "metrics.json",
    "checkpoint.pt", "rerank-checkpoint.pt", "history.jsonl", "rerank.jsonl",
    "architecture.svg", "history.svg", "front.svg", "latencies.json", "config.json",
)  # fmt: skip
#: What a configuration may say of the things that a later command takes from it.
_TYPES: Mapping[str, type | UnionType] = {
    "seed": int,
    "strategy": str,
    "fusion": str,
    "backbones": dict,
    "backbones.folder": str | None,
    "backbones.seed": int,
}
_TRAIN_FILES = (
    "network.safetensors", "judged.json", "train.jsonl", "train-checkpoint.pt",
    "judge-checkpoint.pt",
    "predictions.csv", "confusion.svg", "predictions.svg",
)  # fmt: skip
_TRAIN_METRICS = ("test", "weighing", "importance", "robustness", "parameters", "latency")


def best_cells(file: Path) -> Genotype:
    """Return the best network of Cells of the search that wrote the genotype ``file``.

    Where it found something else that is the first in its ensemble, or the one that did best in its
    short trainings. Raises UserError where there is none.
    """
    found = load_architecture(file)
    networks = found.networks if isinstance(found, Ensemble) else (found,)
    if (rerank := Run(file.parent).rerank).is_file():
        records = [json.loads(line) for line in rerank.read_text(encoding="utf-8").splitlines()]
        records.sort(key=lambda r: (-r.get("longer", 1), -r["worth"]))
        networks += tuple(architecture_from_dict(r["genotype"], str(rerank)) for r in records)
    for network in networks:
        if isinstance(network, Genotype):
            return network
    raise UserError(
        f"{file}: received {found.summary()}, expected Cells, or a search that compared some"
    )


class Run:
    """The files of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Task, settings, seed, versions and hardware.
        self.config = path / "config.json"
        #: The result of the search, and each seed's where a search had several.
        self.genotype, self.genotypes = path / "genotype.json", path / "genotypes"
        #: A line for each epoch of the search, and where it stands.
        self.history, self.checkpoint = path / "history.jsonl", path / "checkpoint.pt"
        #: A line for each candidate of the reranking, and where it stands.
        self.rerank, self.rerank_checkpoint = path / "rerank.jsonl", path / "rerank-checkpoint.pt"
        #: How long parts of networks take, where a search has a limit.
        self.latencies = path / "latencies.json"
        #: A run folder for each point of the front of a search, by number from 1.
        self.front = path / "front"
        #: The trained network.
        self.network = path / "network.safetensors"
        #: A line for each epoch of the training, and where it stands.
        self.training, self.train_checkpoint = path / "train.jsonl", path / "train-checkpoint.pt"
        #: What validation said of the network that was trained on train alone.
        self.judged, self.judge_checkpoint = path / "judged.json", path / "judge-checkpoint.pt"
        #: What the trained network says of every test sample.
        self.predictions = path / "predictions.csv"
        #: The architecture that was found.
        self.drawing = path / "architecture.svg"
        #: Scores, parameters, latency, seconds.
        self.metrics = path / "metrics.json"
        #: Backbones and feature cache, unless they lie elsewhere.
        self.backbones = path / "backbones"

    def begun(self) -> bool:
        """Tell whether anything was done here; a configuration alone does not count."""
        inside = [path for path in self.backbones.glob("*") if path.name != ".lock"]
        return bool(inside) or any(
            path.exists() for path in (self.checkpoint, self.genotype, self.network)
        )

    def read_config(self) -> dict[str, Any]:
        """Return the configuration; raises UserError when it is missing or malformed."""
        config = read_json(self.config)
        task = config.get("task") if isinstance(config, dict) else None
        if not isinstance(task, dict) or not isinstance(task.get("source"), dict):
            raise UserError(f"{self.config}: received no task, expected what `bmnas search` writes")
        backbones = config.get("backbones")
        inside = backbones if isinstance(backbones, dict) else {}
        found = {**config, **{f"backbones.{key}": value for key, value in inside.items()}}
        for key, kind in _TYPES.items():
            if key in found and not isinstance(found[key], kind):
                raise UserError(
                    f"{self.config}: {key}: received {json.dumps(found[key])[:80]}, expected what "
                    "`bmnas search` writes"
                )
        return dict(config)

    def read_source(self, asking: Path) -> dict[str, Any]:
        """Return the ``source`` of the task of this run, in which the file ``asking`` lies.

        Raises UserError, naming ``asking``, when this is no run folder.
        """
        if not self.config.is_file():
            raise UserError(
                f"{asking}: is not in a run folder, which would say what its task is; name the "
                "task with --task (and --data)"
            )
        return dict(self.read_config()["task"]["source"])

    def read_metrics(self) -> RunMetrics:
        """Return what was measured so far, nothing where there is no file."""
        return RunMetrics.load(self.metrics)

    def update_metrics(self, found: RunMetrics) -> None:
        """Add ``found`` to what was measured so far."""
        self.read_metrics().with_also(found).save(self.metrics)

    def remove_search(self) -> None:
        """Delete what a search wrote, and what was trained and exported from it."""
        self._remove_trained()
        # First, for it says that the search is finished.
        self.genotype.unlink(missing_ok=True)
        for path in (*self.genotypes.glob("*.json"), *self.path.glob("checkpoint.seed-*.pt")):
            path.unlink()
        with contextlib.suppress(OSError):
            self.genotypes.rmdir()
        if self.front.is_dir():
            shutil.rmtree(self.front)
        for name in _SEARCH_FILES:
            (self.path / name).unlink(missing_ok=True)

    def remove_training(self) -> None:
        """Delete what a training wrote and measured, and the bundle that was exported from it."""
        metrics = self.read_metrics()
        kept = metrics.without(*_TRAIN_METRICS)
        if kept != metrics:
            kept.save(self.metrics)
        self._remove_trained()

    def _remove_trained(self) -> None:
        for name in _TRAIN_FILES:
            (self.path / name).unlink(missing_ok=True)
        bundle = self.path / "bundle"
        if (bundle / "manifest.json").is_file():
            shutil.rmtree(bundle)


def genotype_file(path: Path) -> Path:
    """Return the genotype of the run folder ``path``; a path that is no folder stays as it is."""
    return Run(path).genotype if path.is_dir() else path


def require_same(run: Run, wanted: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Raise UserError that names what differs between the run's configuration and ``wanted``."""
    what = differing(run, wanted, keys)
    if what is not None:
        raise UserError(
            f"{run.path}: holds a run with {what}; resume it with the same options, start "
            "anew with --overwrite, or choose another folder with --run"
        )


def differing(run: Run, wanted: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """Return the first setting that the run's configuration has otherwise than ``wanted``."""
    # A run of one seed does not speak of their number, one without limits not of those.
    found = {"seeds": 1, "target": {}, **run.read_config()}
    # As a file has it: lists instead of tuples.
    wanted = json.loads(json.dumps({"seeds": 1, "target": {}, **wanted}))
    for key in keys:
        if found.get(key) != wanted[key]:
            return _difference(key, found.get(key), wanted[key])
    return None


def _difference(key: str, found: Any, wanted: Any) -> str:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for name in {**found, **wanted}:
            if found.get(name) != wanted.get(name):
                return _difference(f"{key}.{name}", found.get(name), wanted.get(name))
    return f"{key} {json.dumps(found)}, received {json.dumps(wanted)}"
