"""Mini data sets in the formats of the paper's, from their files to a trained network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paper_files import write_egogesture, write_ntu
from tiny_tasks import CONFIG

from bmnas.backbones.hcn import HCNBackbone
from bmnas.backbones.resnet3d import InflatedResNet50Backbone, ResNeXt3DBackbone
from bmnas.pipeline.search import search
from bmnas.pipeline.train import train
from bmnas.pipeline.unimodal import feature_names
from bmnas.tasks import Task, check_task
from bmnas.tasks.egogesture import load_egogesture
from bmnas.tasks.ntu import load_ntu

NARROW: dict[Any, dict[str, int]] = {
    InflatedResNet50Backbone: {"width": 2},
    HCNBackbone: {"width": 4},
    ResNeXt3DBackbone: {"width": 2, "cardinality": 2},
}


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
    tmp_path: Path, make: Callable[[Path], Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The networks of the papers in full are slow on a CPU.
    for network, widths in NARROW.items():
        for name, width in widths.items():
            monkeypatch.setitem(network.__init__.__kwdefaults__, name, width)
    (tmp_path / "data").mkdir()
    task = make(tmp_path / "data")
    check_task(task)
    assert len(feature_names(task)) == 8
    result = search(task, run=tmp_path / "run", config=CONFIG)
    trained = train(result.run / "genotype.json", task, config=CONFIG)
    assert np.isfinite([result.validation, trained.score]).all()
