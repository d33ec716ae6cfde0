"""Architectures that are trees: their texts, their pictures; files by their format."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bmnas.report.picture import draw_genotype
from bmnas.report.style import figure_svg
from bmnas.report.text import genotype_text
from bmnas.spaces.cells.genotype import GenotypeError
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.registry import load_architecture
from bmnas.spaces.trees.fusion_tree import FusionTree

_FEATURES = ("image.1", "image.2", "audio.1", "audio.2")
_TREE = FusionTree(_FEATURES, 16, 8, ("image.1", "audio.2", "add", "image.2", "concat_dense"))


def test_the_text_of_a_tree_shows_who_reads_whom() -> None:
    lines = genotype_text(_TREE).splitlines()

    assert lines[0] == "tree of 3 features, vectors of 16, L = 8 positions"
    assert lines[4].endswith("audio  (audio.1)  audio.2")
    assert [line.split()[-1] for line in lines if "image.2" in line][-1] == "image.2"
    assert any("concat + dense" in line and "linear 32 → 16" in line for line in lines)


def test_a_tree_is_drawn_as_svg() -> None:
    pytest.importorskip("matplotlib")
    drawn = figure_svg(draw_genotype(_TREE))

    assert "".join(ET.fromstring(drawn).itertext()).count("audio.2") == 1
    assert drawn == figure_svg(draw_genotype(_TREE))


def test_a_file_is_read_by_its_format(tmp_path: Path) -> None:
    genotype = known_genotype("aoa", ("image.1", "audio.1"), channels=4, length=2)
    genotype.save(tmp_path / "genotype.json")

    assert load_architecture(tmp_path / "genotype.json") == genotype


@pytest.mark.parametrize("name", ["bmnas.genotype/9", "", ["x"], 3])
def test_an_unknown_format_is_named_with_the_known_ones(tmp_path: Path, name: object) -> None:
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps({"format": name}))

    with pytest.raises(GenotypeError) as caught:
        load_architecture(path)
    assert str(caught.value).startswith(f"{path}: format: received {name!r}, expected ")
    assert "'bmnas.genotype/1'" in str(caught.value)
