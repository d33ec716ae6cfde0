from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from tiny_problems import CHANNELS, tiny_problem
from tiny_tasks import CONFIG

from bmnas.spaces.cells.operations import PAPER
from bmnas.spaces.cells.supernet import ArchitectureWeights
from bmnas.strategies.bilevel import search_bilevel
from bmnas.strategies.candidates import draw_genotype, even_weights

FEATURES = tuple(CHANNELS)


def test_choices_are_drawn_in_proportion_to_the_relaxed_weights() -> None:
    config = CONFIG.override("search", cells=1, steps=1).search
    weights = ArchitectureWeights(
        alpha=[[0.2, 0.4, 0.8]], beta=[[[0.3, 0.6]]], gamma=[[[0.0, 0.1, 0.2, 0.3, 0.4]]]
    )
    draw = Random(0)
    drawn = [draw_genotype(weights, FEATURES, config, draw).cells[0] for _ in range(6000)]
    pairs = Counter(cell.inputs for cell in drawn)
    products = {(0, 1): 0.08, (0, 2): 0.16, (1, 2): 0.32}
    for (i, j), product in products.items():
        share = pairs[FEATURES[i], FEATURES[j]] / len(drawn)
        assert share == pytest.approx(product / sum(products.values()), abs=0.03)
    operations = Counter(cell.steps[0].op for cell in drawn)
    for name, weight in zip(PAPER, weights.gamma[0][0], strict=True):
        assert operations[name] / len(drawn) == pytest.approx(weight, abs=0.03)
    orders = Counter(cell.steps[0].inputs for cell in drawn)
    assert orders["x", "y"] / len(drawn) == pytest.approx(0.5, abs=0.03)


def test_even_weights_have_the_shape_of_relaxed_ones(tmp_path: Path) -> None:
    problem = tiny_problem(tmp_path, cells=3, steps=2, epochs=1)
    search_bilevel(problem)
    found = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])
    even = even_weights(len(FEATURES), problem.config)
    assert [len(row) for row in even.alpha] == [len(row) for row in found["alpha"]]
    for ours, theirs in ((even.beta, found["beta"]), (even.gamma, found["gamma"])):
        assert [[len(row) for row in cell] for cell in ours] == [
            [len(row) for row in cell] for cell in theirs
        ]
