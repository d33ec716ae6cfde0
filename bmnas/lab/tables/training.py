"""Training the networks of a table, batch by batch; a batch's results are a file of their own.

Legend: G networks of a batch, L length, C_raw channels of a raw feature.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bmnas.features.cache import FeatureCache, entry_folder
from bmnas.features.mapped import Pages, map_array
from bmnas.features.samples import FeatureSamples, label_tensor
from bmnas.machine.errors import UserError
from bmnas.machine.files import atomic_path
from bmnas.machine.processes import one_thread, worker_pool
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.strategies.settings import SearchConfig
from bmnas.tasks.columns import read_npz
from bmnas.tasks.task import Array, Part
from bmnas.training.fit import Recipe
from bmnas.training.heads import TaskHead
from bmnas.training.together import evaluate_together, fit_together, joined

#: Networks in a batch, at most: with more, what a step works on no longer stays in the caches.
GROUP = 16

#: What a part holds of each network, besides its seconds.
SCORES = ("validation", "test", "validation_loss", "test_loss")

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class NetworkGroup:
    """Networks by their numbers in the table, to be trained together with one seed."""

    name: str
    entries: tuple[int, ...]
    seed: int


def network_groups(genotypes: Sequence[Genotype], seeds: range) -> list[NetworkGroup]:
    """Return groups of equal size, at most ``GROUP``, of networks with the same steps if any."""
    steps = [[cell.steps for cell in genotype.cells] for genotype in genotypes]
    # Networks with the same steps do all of their work together.
    alike = sorted(range(len(genotypes)), key=lambda n: repr(steps[n]))
    groups = []
    for share in np.array_split(alike, -(-len(alike) // GROUP)):
        for seed in seeds:
            groups.append(NetworkGroup(f"{share[0]:06d}-{seed}", tuple(map(int, share)), seed))
    return groups


@dataclass(frozen=True)
class StoredFeatures:
    """Where the cached features lie, which rows and labels each part has: plain data.

    A process maps the files by itself, see ``samples``.
    """

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    rows: Mapping[Part, Mapping[str, Array]]
    labels: Mapping[Part, Array]

    @classmethod
    def of(cls, cache: FeatureCache, folder: Path, dtype: str) -> StoredFeatures:
        """Return those of ``cache``, which was opened in ``folder`` with ``dtype``."""
        modalities = zip(cache.task.modalities, cache.keys, strict=True)
        entries = {m.name: entry_folder(folder, m.name, key) for m, key in modalities}
        files = {}
        for name in cache.names:
            modality, _, feature = name.partition(".")
            files[name] = entries[modality] / f"{feature}.npy"
        rows: dict[Part, dict[str, Array]] = {}
        labels: dict[Part, Array] = {}
        for part in cache.parts:
            chosen = cache.task.samples(part)
            rows[part] = {
                m.name: np.searchsorted(cache.rows[m.name], m.rows_of(chosen))
                for m in cache.task.modalities
            }
            labels[part] = label_tensor(cache.task, chosen).numpy()
        shapes = {name: tuple(array.shape) for name, array in cache.arrays.items()}
        return cls(files, shapes, dtype, rows, labels)

    def samples(self) -> dict[Part, FeatureSamples]:
        """Map the files; return the samples of each part."""
        names = tuple(self.files)
        mapped = {n: map_array(self.files[n], self.shapes[n], self.dtype) for n in names}
        arrays = {name: array for name, (array, _) in mapped.items()}
        pages = Pages([file for _, file in mapped.values()])
        return {
            part: FeatureSamples(
                names,
                arrays,
                {modality: torch.from_numpy(index) for modality, index in rows.items()},
                torch.from_numpy(self.labels[part]),
                pages,
            )
            for part, rows in self.rows.items()
        }


@dataclass(frozen=True)
class Work:
    """What training needs, as plain data that another process can be sent."""

    genotypes: Sequence[Genotype]
    features: StoredFeatures
    head: TaskHead
    config: SearchConfig
    classes: int
    parts: Path

    def network(self, genotype: Genotype) -> FusionNetwork:
        """Return the fusion network of ``genotype`` with fresh weights."""
        channels = {name: shape[-1] for name, shape in self.features.shapes.items()}
        dropout = self.config.dropout
        return FusionNetwork(genotype, channels, classes=self.classes, dropout=dropout)

    def part(self, group: NetworkGroup) -> Path:
        """Return the file of a batch's results."""
        return self.parts / f"{group.name}.npz"

    def read_part(self, group: NetworkGroup) -> Mapping[str, NDArray[Any]]:
        """Return the arrays (G) of a batch's file; raises UserError when it is damaged."""
        path, count = self.part(group), len(group.entries)
        try:
            found = read_npz(path, (*SCORES, "seconds"))
        except UserError as error:
            advice = "delete this file, its networks will be trained again"
            raise UserError(f"{error}; {advice}") from error
        if any(array.shape != (count,) for array in found.values()):
            raise UserError(f"{path}: expected {count} networks; delete this file")
        return found


class Trainer:
    """Trains batches in this process."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._samples = work.features.samples()

    def write_part(self, group: NetworkGroup) -> None:
        """Train a batch and write its file, whole or not at all.

        Raises UserError when a loss is no longer finite.
        """
        found = self.train(group)
        with atomic_path(self._work.part(group)) as aside, aside.open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]

    def train(self, group: NetworkGroup) -> dict[str, NDArray[Any]]:
        """Train a batch as candidates are; return the arrays (G) of its file.

        A network's results depend on itself and the seed, beyond rounding on nothing else.
        """
        started = time.perf_counter()
        work, config = self._work, self._work.config
        networks = []
        for number in group.entries:
            seed_stage(group.seed, f"tabular {number}")
            networks.append(work.network(work.genotypes[number]))
        seed_stage(group.seed, "tabular batches")
        together = joined(networks, self._samples["train"], config.batch_size, _CPU)
        validation = fit_together(
            together,
            self._samples["train"],
            self._samples["validation"],
            work.head,
            Recipe(config.candidate_epochs, config.batch_size, config.min_lr, config.weight_decay),
            max_lr=config.max_lr,
            device=_CPU,
            stage=f"batch {group.name}",
            keep="last",
        )
        seconds = (time.perf_counter() - started) / len(networks)
        test = evaluate_together(together, self._samples["test"], work.head, _CPU)
        return {
            "seconds": np.full(len(networks), seconds),
            "validation": np.array([own.best.score for own in validation]),
            "validation_loss": np.array([own.best.loss for own in validation]),
            "test": np.array([own.score for own in test]),
            "test_loss": np.array([own.loss for own in test]),
        }


def trained(work: Work, groups: Sequence[NetworkGroup], workers: int) -> Iterator[NetworkGroup]:
    """Train ``groups`` in ``workers`` processes of one thread; yield each when its part is there.

    A single worker is this process. Raises UserError when a loss is no longer finite, and when a
    process was killed.
    """
    if workers == 1:
        with one_thread():
            trainer = Trainer(work) if groups else None
            for group in groups:
                if trainer is not None:
                    trainer.write_part(group)
                yield group
        return
    with worker_pool(workers, _prepare, work) as pool:
        running = {pool.submit(_train, group): group for group in groups}
        for future in as_completed(running):
            future.result()
            yield running[future]


_trainer: Trainer | None = None  # of a worker process


def _prepare(work: Work) -> None:
    global _trainer
    _trainer = Trainer(work)


def _train(group: NetworkGroup) -> None:
    assert _trainer is not None
    _trainer.write_part(group)
