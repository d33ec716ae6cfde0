"""Architectures of other spaces than BM-NAS's: their files, their texts, their pictures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from bmnas.machine.errors import UserError
from bmnas.report import architecture_svg, genotype_text
from bmnas.report.geometry import crossings
from bmnas.report.tree_layout import tree_layout
from bmnas.spaces.cells.genotype import GenotypeError
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.formats import load_found
from bmnas.spaces.found import FoundTree, Node


@dataclass(frozen=True)
class Tree(FoundTree):
    """A tree that is what it is given."""

    FORMAT: ClassVar[str] = "test.tree/1"

    features: tuple[str, ...]
    length: int
    root: Node
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def live_features(self) -> tuple[str, ...]:
        read = set(_leaves(self.root))
        return tuple(name for name in self.features if name in read)

    def summary(self) -> str:
        return f"{len(_leaves(self.root))} leaves"

    def to_dict(self) -> dict[str, Any]:
        return {"format": self.FORMAT}

    @classmethod
    def parse(cls, data: Any) -> Self:
        raise NotImplementedError

    def tree(self) -> Node:
        return self.root


def _leaves(node: Node) -> list[str]:
    inner = [leaf for child in node.children for leaf in _leaves(child)]
    return inner if node.children else [node.label]


_FEATURES = ("image.1", "image.2", "audio.1", "audio.2")
_ROOT = Node(
    "concat + dense",
    "32 ReLU",
    (
        Node("add", "", (Node("image.1"), Node("audio.2"))),
        Node("mul", "", (Node("add", "", (Node("image.2"), Node("audio.2"))), Node("image.1"))),
    ),
)


def test_the_text_of_a_tree_shows_who_reads_whom() -> None:
    lines = genotype_text(Tree(_FEATURES, 8, _ROOT)).splitlines()

    assert lines[0] == "5 leaves"
    assert lines[4].endswith("audio  (audio.1)  audio.2")
    assert lines[6:] == [
        "classifier  linear → logits",
        "└─ concat + dense  32 ReLU",
        "   ├─ add",
        "   │  ├─ image.1",
        "   │  └─ audio.2",
        "   └─ mul",
        "      ├─ add",
        "      │  ├─ image.2",
        "      │  └─ audio.2",
        "      └─ image.1",
    ]


def test_a_drawn_tree_has_all_nodes_apart_and_no_crossing() -> None:
    sheet = tree_layout(Tree(_FEATURES, 8, _ROOT), lambda text, size: 0.07 * len(text))

    assert sorted(box.label for box in sheet.boxes) == sorted(
        [*_leaves(_ROOT), "add", "add", "mul", "concat + dense", "Classifier"]
    )
    for a in sheet.boxes:
        assert 0 < a.x < a.x + a.width < sheet.width
        assert 0 < a.y < a.y + a.height < sheet.height
        for b in sheet.boxes:
            aside = a.x + a.width < b.x or b.x + b.width < a.x
            assert a is b or aside or a.y + a.height < b.y or b.y + b.height < a.y
    assert crossings(sheet.wires) == 0
    assert any("not used: audio.1" in label.text for label in sheet.labels)


def test_a_tree_is_drawn_as_svg() -> None:
    pytest.importorskip("matplotlib")
    drawn = architecture_svg(Tree(_FEATURES, 8, _ROOT))

    assert "".join(ET.fromstring(drawn).itertext()).count("audio.2") == 2
    assert drawn == architecture_svg(Tree(_FEATURES, 8, _ROOT))


def test_a_tree_too_large_for_a_picture_says_so() -> None:
    root = Node("add", "", tuple(Node("image.1") for _ in range(100)))

    with pytest.raises(UserError, match="received 102 nodes, expected at most 100"):
        tree_layout(Tree(_FEATURES, 8, root), lambda text, size: 0.1)


def test_a_file_is_read_by_its_format(tmp_path: Path) -> None:
    genotype = known_genotype("aoa", ("image.1", "audio.1"), channels=4, length=2)
    genotype.save(tmp_path / "genotype.json")

    assert load_found(tmp_path / "genotype.json") == genotype


@pytest.mark.parametrize("name", ["bmnas.genotype/9", "", ["x"], 3])
def test_an_unknown_format_is_named_with_the_known_ones(tmp_path: Path, name: object) -> None:
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps({"format": name}))

    with pytest.raises(GenotypeError) as caught:
        load_found(path)
    assert str(caught.value).startswith(f"{path}: format: received {name!r}, expected ")
    assert "'bmnas.genotype/1'" in str(caught.value)


def test_another_provenance_leaves_the_architecture_as_it_is() -> None:
    tree = Tree(_FEATURES, 8, _ROOT)
    other = tree.with_provenance({"task": "digits"})

    assert other == tree
    assert other.provenance == {"task": "digits"}
