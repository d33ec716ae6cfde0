"""The presets of BM-NAS's Table 8: their settings, a dry run of each, and the sizes of networks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import bmnas_command
from tiny_problems import CPU
from tiny_tasks import write_tiny_task

from bmnas.cli.plan import PlannedData
from bmnas.lab.planning import made_up_task
from bmnas.machine.costs import count_parameters
from bmnas.pipeline.config import load_preset
from bmnas.pipeline.search import search
from bmnas.pipeline.train import train
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.fusions.features import Sizes
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.spaces.mfas.genotype import Layer, MFASGenotype
from bmnas.spaces.mfas.network import MFASNetwork

#: C, L, N, M, epochs, batch, dropout, highest learning rate, M parameters.
TABLE_8 = {
    "ntu-1": (128, 8, 2, 2, 30, 96, 0.2, 1e-3, 0.98),
    "ntu-2": (256, 8, 2, 1, 30, 96, 0.2, 1e-3, 1.71),
    "ntu-3": (128, 8, 2, 1, 30, 96, 0.2, 1e-3, 0.98),
    "ntu-4": (256, 8, 4, 2, 30, 96, 0.2, 1e-3, 2.57),
    "ego-1": (128, 8, 2, 3, 7, 72, 0.0, 3e-3, 0.61),
    "ego-2": (128, 8, 1, 2, 7, 72, 0.2, 1e-2, 0.45),
    "ego-3": (192, 8, 4, 2, 7, 72, 0.2, 3e-3, 1.17),
    "ego-4": (192, 12, 2, 2, 7, 72, 0.0, 3e-3, 1.59),
    "mmimdb-1": (192, 16, 2, 1, 12, 96, 0.1, 1e-3, 0.65),
}
NTU = tuple(f"{name}.{n}" for name in ("rgb", "skeleton") for n in range(1, 5))
DOCS = Path(__file__).parents[2] / "docs" / "reproduce.md"


def channels_of_preset(name: str) -> list[int]:
    return PlannedData().channels(load_preset(name))


@pytest.mark.parametrize("name", TABLE_8)
def test_settings_are_those_of_the_table_and_of_the_papers_recipe(name: str) -> None:
    preset = load_preset(name)
    s = preset.search
    shape = (s.channels, s.length, s.cells, s.steps, s.epochs, s.batch_size, s.dropout, s.max_lr)
    assert shape == TABLE_8[name][:-1]
    assert (s.arch_lr, s.arch_weight_decay, s.min_lr, s.weight_decay) == (3e-4, 1e-3, 1e-6, 1e-4)
    # Evaluation: 50 to 70 epochs, of everything.
    assert 50 <= preset.train.epochs <= 70
    assert not preset.train.freeze_backbones
    assert (preset.train.batch_size, preset.train.dropout) == (s.batch_size, s.dropout)
    assert preset.as_in_the_paper() == preset
    assert set(preset.promise) == {"use", "command", "time", "memory", "score", "features"}


def test_an_option_wins_over_the_preset_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = ["--channels", "8", "--cells", "1", "--epochs", "1"]
    words = ["--task", "task.toml", "--preset", "ntu-1", "--run", "run", *given]
    assert bmnas_command("search", *words).status == 0
    assert bmnas_command("train", "--genotype", "run", "--epochs", "2").status == 0
    recorded = json.loads(Path("run/config.json").read_text())
    preset = load_preset("ntu-1").to_dict()
    assert recorded["preset"] == "ntu-1"
    assert recorded["search"] == {**preset["search"], "channels": 8, "cells": 1, "epochs": 1}
    assert recorded["train"] == {**preset["train"], "epochs": 2}
    genotype = Genotype.load(Path("run/genotype.json"))
    assert (genotype.channels, len(genotype.cells)) == (8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE_8)
def test_a_few_steps_on_features_of_the_real_shapes(tmp_path: Path, name: str) -> None:
    preset = load_preset(name)
    channels, batch = channels_of_preset(name), preset.search.batch_size
    task = made_up_task(channels, (2 * batch, batch, batch))
    short = preset.override("search", epochs=1).override("train", epochs=1)
    found = search(task, run=tmp_path / "run", config=short, runtime=CPU)
    genotype = found.genotype
    assert isinstance(genotype, Genotype)
    assert len(genotype.features) == len(channels)
    assert len(genotype.cells) == preset.search.cells
    trained = train(found.run / "genotype.json", task, config=short, runtime=CPU)
    assert np.isfinite([found.validation, trained.score]).all()


def size(genotype: Genotype, raw: dict[str, int]) -> int:
    """Return the weights of the network of ``genotype``, classifier left out."""
    network = FusionNetwork(genotype, raw, classes=60, dropout=0.1)
    return count_parameters(network) - count_parameters(network.classifier)


def more_in_the_released_program(genotype: Genotype) -> int:
    """Return the weights that one map of 2C to 2C has more than two of C to C (Eq. 7)."""
    gates = sum(step.op == "linear_glu" for cell in genotype.cells for step in cell.steps)
    return 2 * genotype.channels**2 * gates


def extreme(name: str, op: str, *, wide: bool) -> tuple[Genotype, dict[str, int]]:
    """Return Cells of ``op`` on the widest features, all different, or on the narrowest."""
    s, channels = load_preset(name).search, channels_of_preset(name)
    raw = {f"m.{n + 1}": width for n, width in enumerate(sorted(channels, reverse=wide))}
    names = tuple(raw)
    # Wide: two features that are new for every Cell; narrow: two, then what came before.
    pairs = [
        (names[2 * k], names[2 * k + 1]) if wide else (names[0], f"cell{k}" if k else names[1])
        for k in range(s.cells)
    ]
    steps = (Step(op, ("x", "y")),) * s.steps
    cells = tuple(Cell(pair, steps) for pair in pairs)
    return Genotype(names, s.channels, s.length, cells), raw


@pytest.mark.parametrize("name", TABLE_8)
def test_sizes_are_those_of_the_page(name: str) -> None:
    widest, raw = extreme(name, "linear_glu", wide=True)
    least, most = size(*extreme(name, "sum", wide=False)), size(widest, raw)
    counts = least, most, most + more_in_the_released_program(widest)
    sizes = " | ".join(f"{count / 1e6:.2f}" for count in counts)
    assert f"| `{name}` | {TABLE_8[name][-1]} | {sizes} |" in DOCS.read_text()


def test_ntu_with_the_features_that_are_always_taken() -> None:
    raw = {"rgb.3": 2048, "rgb.4": 2048, "skeleton.4": 512}
    found = []
    for op in ("sum", "linear_glu"):
        steps = (Step(op, ("x", "y")),) * 2
        cells = Cell(("rgb.3", "skeleton.4"), steps), Cell(("rgb.4", "cell1"), steps)
        genotype = Genotype(tuple(raw), 128, 8, cells)
        found.append(size(genotype, raw))
    found.append(found[-1] + more_in_the_released_program(genotype))
    assert [f"{count / 1e6:.2f}" for count in found] == ["0.67", "0.80", "0.93"]


def test_sizes_of_others_on_ntu() -> None:
    widths = dict(zip(NTU, channels_of_preset("ntu-1"), strict=True))
    # MFAS's [3,0,0], [1,3,0], [1,1,1], [3,3,0]: numbers from 0, the skeleton's first.
    chosen = ((3, 0, "relu"), (1, 3, "relu"), (1, 1, "sigmoid"), (3, 3, "relu"))
    layers = tuple(Layer((NTU[j], NTU[4 + i]), act) for i, j, act in chosen)
    genotype = MFASGenotype(NTU, 8, 256, layers)
    networks = {
        "mfas": MFASNetwork(genotype, widths, classes=60, dropout=0.1),
        "mmtm": FUSIONS["mmtm"](widths, Sizes(128, 8, 60, 0.1)),
    }
    for name, network in networks.items():
        own = count_parameters(network) - count_parameters(network.classifier)
        assert re.search(rf"{name}`, fusion params: {own / 1e6:.2f} M", DOCS.read_text())


def test_the_released_program_counts_alike() -> None:
    # What an early README of BM-NAS prints: edges from features 0 and 4, 1 and 4; two LinearGLUs.
    raw = {"image.1": 512, "image.2": 512, "text.1": 64}
    glu = (Step("linear_glu", ("x", "y")),)
    cells = Cell(("image.1", "text.1"), glu), Cell(("image.2", "text.1"), glu)
    genotype = Genotype(tuple(raw), 192, 16, cells)
    assert size(genotype, raw) + more_in_the_released_program(genotype) == 532_416


def test_the_network_found_on_mm_imdb() -> None:
    found = Genotype.load(DOCS.parents[1] / "examples" / "mmimdb-1.json")
    here = size(found, {"image.3": 512, "text.1": 64})
    there = here + more_in_the_released_program(found)
    assert f"| sum | {here:,} | {there:,} |" in DOCS.read_text()
