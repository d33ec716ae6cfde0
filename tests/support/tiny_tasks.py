"""Tasks of a few dozen samples that train in a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config
from bmnas.strategies.evolution import EvolutionConfig
from bmnas.strategies.mfas import MFASConfig
from bmnas.strategies.mmnas import MMnasConfig
from bmnas.strategies.settings import SearchConfig
from bmnas.tasks import Modality, Rows, Task
from bmnas.tasks.kinds import Array
from bmnas.training.settings import TrainConfig, UnimodalConfig

CONFIG = Config(
    UnimodalConfig(epochs=1, batch_size=16),
    SearchConfig(channels=8, length=4, epochs=2, batch_size=16, candidates=3, candidate_epochs=1),
    TrainConfig(epochs=1, batch_size=16),
    strategies={
        "mfas": MFASConfig(
            sweeps=1, levels=2, kept=2, epochs=1, batch_size=16, inner_size=4, final_inner_size=8
        ),
        "evolution": EvolutionConfig(
            population=4, generations=2, epochs=3, patience=2, batch_size=16, width=6
        ),
        "mmnas": MMnasConfig(
            encoder=2, decoder=3, width=8, head=4, hidden=2, warm_up=0.0, alpha_every=1
        ),
    },
)


class Fragile(Rows):
    """The rows of an array, some of which cannot be read; ``asked`` are those that were read."""

    def __init__(self, data: Array, broken: set[int]) -> None:
        self._data, self._broken, self.asked = data, broken, list[int]()
        self.shape, self.dtype = data.shape, data.dtype

    def __getitem__(self, numbers: Array) -> Array:
        for number in numbers.tolist():
            if number in self._broken:
                raise UserError(f"file {number}: cannot be read")
        self.asked += numbers.tolist()
        return np.asarray(self._data[numbers])

    def digest(self, numbers: Array) -> str:
        return str(numbers)


def tiny_task(*, kind: str = "multiclass", modalities: int = 2, samples: int = 96) -> Task:
    """Sequences whose mean says a digit of the label; together they say it all."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (samples, modalities))
    own = [f"m{m}" for m in range(modalities)]
    arrays = [
        (rng.normal(size=(samples, 6, 3)) + 2 * bits[:, m, None, None]).astype(np.float32)
        for m in range(modalities)
    ]
    labels = bits if kind == "multilabel" else bits @ (2 ** np.arange(modalities))
    classes = modalities if kind == "multilabel" else 2**modalities
    names = tuple(f"class {k}" for k in range(classes))
    if kind == "regression":
        labels, names = 10.0 * labels[:, None], ("amount",)
    part = np.arange(samples) % 3
    return Task(
        name="tiny",
        kind=kind,  # type: ignore[arg-type]
        modalities=tuple(
            Modality(name, "sequence", array) for name, array in zip(own, arrays, strict=True)
        ),
        labels=labels,
        part=part,
        class_names=names,
    )


def changed(task: Task, number: int, **values: Any) -> Task:
    """Return the task with other attributes of one modality."""
    modalities = list(task.modalities)
    modalities[number] = dataclasses.replace(modalities[number], **values)
    return dataclasses.replace(task, modalities=tuple(modalities))


def write_tiny_task(folder: Path, **settings: Any) -> Path:
    """Write a tiny task as task.toml and .npz, for the command line."""
    task = tiny_task(**settings)
    arrays = {modality.name: modality.data for modality in task.modalities}
    np.savez(folder / "tiny.npz", label=task.labels, part=task.part, **arrays)
    lines = [
        'name = "tiny"',
        f'kind = "{task.kind}"',
        'data = "tiny.npz"',
        'labels = "label"',
        'split = "part"',
        # What follows from the data would be hundreds of epochs of so few samples.
        'preset = "quick"',
    ]
    for modality in task.modalities:
        lines += [f"[modality.{modality.name}]", f'array = "{modality.name}"', 'type = "sequence"']
    path = folder / "task.toml"
    path.write_text("\n".join(lines))
    return path
