"""What every search space keeps: one contract for all that are registered."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny_tasks import CONFIG

from bmnas.machine.errors import UserError
from bmnas.report.picture import draw_genotype
from bmnas.report.style import figure_svg
from bmnas.report.text import genotype_text
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.genotype import GenotypeError
from bmnas.spaces.registry import (
    SPACES,
    architecture_from_dict,
    build_fusion,
    describe,
    load_architecture,
    space_named,
    space_of,
)
from bmnas.spaces.space import SearchSpace

CHANNELS = {"m0.1": 3, "m0.2": 5, "m1.1": 4}
SIZES = {"cells": 2, "steps": 2, "channels": 6, "length": 4, "width": 6, "levels": 2,
         "inner_size": 4, "final_inner_size": 8, "head": 3}  # fmt: skip


@pytest.fixture(params=list(SPACES))
def space(request: pytest.FixtureRequest) -> SearchSpace[Any]:
    return space_named(request.param).of(tuple(CHANNELS), SIZES)


def sampled(space: SearchSpace[Any], count: int = 12) -> list[Architecture]:
    draw = Random(0)
    return [space.sample(draw) for _ in range(count)]


def test_the_same_seed_draws_the_same(space: SearchSpace[Any]) -> None:
    assert sampled(space) == sampled(space)
    assert len({space.canonical(genotype) for genotype in sampled(space)}) > 3


def test_what_is_drawn_is_of_the_space(space: SearchSpace[Any]) -> None:
    for genotype in sampled(space):
        assert space_of(genotype) is type(space)
        read = build_fusion(genotype, CHANNELS, classes=3, dropout=0.0)
        assert read.length == (None if space.NAME == "mmnas" else SIZES["length"])
        assert set(genotype.live_features()) <= set(CHANNELS)


def test_a_file_and_back(space: SearchSpace[Any], tmp_path: Path) -> None:
    for genotype in sampled(space):
        genotype.with_provenance({"task": "t"}).save(tmp_path / "genotype.json")
        found = load_architecture(tmp_path / "genotype.json")
        assert found == genotype
        assert found.provenance == {"task": "t"}
        assert space.canonical(found) == space.canonical(genotype)


@pytest.mark.parametrize("changes", [{"length": 0}, {"length": "4"}, {"format": "x/1"}, {"no": 1}])
def test_a_wrong_file_is_one_line(space: SearchSpace[Any], changes: dict[str, Any]) -> None:
    data = {**sampled(space, 1)[0].to_dict(), **changes}
    with pytest.raises(GenotypeError, match=f"^file.json: .*{next(iter(changes))}") as caught:
        architecture_from_dict(json.loads(json.dumps(data)), "file.json")
    assert "\n" not in str(caught.value)


def test_every_network_gives_logits_and_gradients(space: SearchSpace[Any]) -> None:
    for genotype in sampled(space, 6):
        for build in (space.build, space.build_candidate):
            network = build(space.final(genotype), CHANNELS, classes=3, dropout=0.1)
            positions = network.length or 5  # of tokens there may be any number
            output = network([torch.randn(4, positions, CHANNELS[f]) for f in network.features])
            logits = output if isinstance(output, torch.Tensor) else output[0]
            assert logits.shape == (4, 3)
            logits.sum().backward()
            assert any(p.grad is not None for p in network.classifier.parameters())
        built = build_fusion(genotype, CHANNELS, classes=3, dropout=0.0)
        assert set(genotype.live_features()) <= set(built.features) <= set(CHANNELS)


def test_neighbours_are_others_and_mutations_are_of_the_space(space: SearchSpace[Any]) -> None:
    draw = Random(1)
    for genotype in sampled(space, 4):
        neighbours = space.neighbours(genotype)
        assert neighbours
        assert genotype not in neighbours
        assert len(set(map(str, neighbours))) == len(neighbours)
        for other in (*neighbours[:20], space.mutated(genotype, draw)):
            assert space_of(other) is type(space)
    for child in space.crossed(*sampled(space, 2), draw):
        assert space_of(child) is type(space)


def test_numbers_tell_architectures_apart(space: SearchSpace[Any]) -> None:
    rows: dict[Any, str] = {}
    for genotype in sampled(space, 60):
        encoded = space.encode(genotype)
        assert len({len(row) for row in encoded}) == 1
        name = rows.setdefault(encoded, space.canonical(genotype))
        assert name == space.canonical(genotype)


def test_levels_unfold_from_nothing(space: SearchSpace[Any]) -> None:
    if space.levels == 0:
        with pytest.raises(UserError, match=f"space {space.NAME}: has no levels"):
            space.unfold([], 0)
        return
    kept: list[Any] = []
    for level in range(space.levels):
        unfolded = space.unfold(kept, level)
        assert len({space.canonical(genotype) for genotype in unfolded}) == len(unfolded) > 1
        kept = unfolded[:3]


def test_it_is_described_drawn_and_told(space: SearchSpace[Any]) -> None:
    pytest.importorskip("matplotlib")
    for genotype in sampled(space, 2):
        described = describe(genotype)
        assert described.summary in genotype_text(genotype)
        assert set(described.live_features()) <= set(CHANNELS)
        assert figure_svg(draw_genotype(genotype)) == figure_svg(draw_genotype(genotype))


def test_a_space_takes_the_settings_that_have_its_sizes_names() -> None:
    assert space_named("cells").of(("a.1", "b.1"), {"cells": 3, "other": 1}).cells == 3
    assert set(space_named("trees").sizes()) == {"width", "length"}
    assert CONFIG.search.length == 4


def test_an_unknown_space_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"received space 'tree', expected one of cells, mfas"):
        space_named("tree")
