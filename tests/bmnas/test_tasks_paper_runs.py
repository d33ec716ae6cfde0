"""Mini data sets in the formats of the paper's, from their files to a trained network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paper_files import write_egogesture, write_ntu
from tiny_tasks import CONFIG

from bmnas.pipeline.search import search
from bmnas.pipeline.train import train
from bmnas.tasks import Task, check_task
from bmnas.tasks.egogesture import load_egogesture
from bmnas.tasks.ntu import load_ntu


def ntu(folder: Path) -> Task:
    names = [f"S001C001P{p:03}R001A{a:03}" for p in (1, 2, 40) for a in range(1, 61)]
    write_ntu(folder, names)
    return load_ntu(folder, size=12)


def egogesture(folder: Path) -> Task:
    lines = [
        [f"Subject0{part}/Scene1/Color/rgb1 {k} {2 * k} {2 * k + 1}" for k in range(1, 84)]
        for part in (1, 2, 3)
    ]
    write_egogesture(folder, lines)
    return load_egogesture(folder, size=12)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ntu, egogesture])
def test_a_mini_data_set_is_searched_and_trained(
    tmp_path: Path, make: Callable[[Path], Task]
) -> None:
    (tmp_path / "data").mkdir()
    task = make(tmp_path / "data")
    # The paper's backbones are tested by themselves, and are slow on CPUs.
    small = tuple(dataclasses.replace(m, backbone=None) for m in task.modalities)
    task = dataclasses.replace(task, modalities=small)
    check_task(task)
    result = search(task, run=tmp_path / "run", config=CONFIG)
    trained = train(result.run / "genotype.json", task, config=CONFIG)
    assert np.isfinite([result.validation, trained.score]).all()
