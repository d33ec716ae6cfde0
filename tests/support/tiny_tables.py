"""Tables of made-up scores, and tasks whose tables are built in a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tiny_tasks import CONFIG, tiny_task

from bmnas.lab.table_build import build_table
from bmnas.lab.tables import Table
from bmnas.pipeline.config import Config
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.space import CellSpace

FEATURES = ("a.1", "a.2", "b.1", "b.2")
WORTH = {"zero": 0, "sum": 1, "attention": 2, "linear_glu": 4, "concat_fc": 3}


def made_table(*, noise: float = 0.01, seeds: int = 3, steps: int = 2) -> Table:
    """A table where later features and some operations are worth more, up to ``noise``."""
    space = CellSpace(FEATURES, 1, steps, 8, 4)
    genotypes = tuple(space.distinct().values())
    rng = np.random.default_rng(0)
    worth = np.array([worth_of(genotype) for genotype in genotypes])[:, None]
    shape = len(genotypes), seeds
    validation, test = (worth + noise * rng.random(shape) for _ in range(2))
    about = {
        "task": {"name": "made up", "source": {}},
        "metric": "accuracy",
        "features": list(FEATURES),
        "seed": 0,
        "search": {"cells": 1, "steps": steps, "channels": 8, "length": 4, "candidate_epochs": 1},
    }
    arrays = {
        "validation": validation,
        "test": test,
        "validation_loss": 1 - validation,
        "test_loss": 1 - test,
        "parameters": np.arange(len(genotypes), dtype=np.int64),
        "latency_ms": rng.random(len(genotypes)),
        "seconds": np.full(len(genotypes), 0.5),
    }
    return Table(about, genotypes, arrays)


def worth_of(genotype: Genotype) -> float:
    (cell,) = genotype.cells
    features = sum(FEATURES.index(name) for name in genotype.live_features())
    return (features + sum(WORTH[step.op] for step in cell.steps)) / 20


TABLE_CONFIG: Config = CONFIG.override(
    "search", cells=1, steps=1, channels=4, length=2, candidate_epochs=1
)


def build_tiny(folder: Path, name: str = "table", **changes: Any) -> Table:
    settings: dict[str, Any] = {"config": TABLE_CONFIG, "seeds": 2, "run": folder / name}
    settings |= changes
    task = settings.pop("task", None) or tiny_task()
    return build_table(task, folder / f"{name}.npz", **settings)
