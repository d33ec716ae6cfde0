"""Mini data sets in the formats of the paper's, from their files to a trained network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paper_files import make_narrow, write_all_of_egogesture, write_all_of_ntu
from tiny_tasks import CONFIG

from bmnas.pipeline.search import search
from bmnas.pipeline.train import train
from bmnas.pipeline.unimodal import feature_names
from bmnas.tasks import Task, check_task
from bmnas.tasks.egogesture import load_egogesture
from bmnas.tasks.ntu import load_ntu


def ntu(folder: Path) -> Task:
    write_all_of_ntu(folder)
    return load_ntu(folder, size=12)


def egogesture(folder: Path) -> Task:
    write_all_of_egogesture(folder)
    return load_egogesture(folder, size=12)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ntu, egogesture])
def test_a_mini_data_set_is_searched_and_trained(
    tmp_path: Path, make: Callable[[Path], Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_narrow(monkeypatch)
    (tmp_path / "data").mkdir()
    task = make(tmp_path / "data")
    check_task(task)
    assert len(feature_names(task)) == 8
    result = search(task, run=tmp_path / "run", config=CONFIG)
    trained = train(result.run / "genotype.json", task, config=CONFIG)
    assert np.isfinite([result.validation, trained.score]).all()
