"""Trees as tokens, and their file."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bmnas.report.text import genotype_text
from bmnas.spaces.cells.genotype import GenotypeError
from bmnas.spaces.registry import load_architecture
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.tree import (
    OPERATIONS,
    branch,
    depth,
    from_nodes,
    grafted,
    leaves,
    modalities,
    normal,
    random_tree,
    text,
    to_nodes,
    usable,
    without_repeats,
)

FEATURES = ("a.1", "a.2", "b.1", "b.2")
# add(mul(a.2, b.1), max(a.1, b.2))
TREE = ("a.2", "b.1", "mul", "a.1", "b.2", "max", "add")


def words(line: str) -> tuple[str, ...]:
    return tuple(line.split())


def test_what_a_tree_reads() -> None:
    assert leaves(TREE) == ("a.2", "b.1", "a.1", "b.2")
    assert modalities(TREE) == {"a", "b"}
    assert modalities(words("a.2 a.1 add")) == {"a"}
    assert text(TREE) == "add(mul(a.2, b.1), max(a.1, b.2))"


def test_the_depth_is_the_longest_way() -> None:
    assert depth(("a.1",)) == 0
    assert depth(TREE) == 2
    assert depth(words("a.1 b.1 add a.2 add b.2 add")) == 3


def test_a_tree_of_one_modality_or_too_many_levels_is_of_no_use() -> None:
    assert usable(TREE)
    assert not usable(words("a.2 a.1 add"))
    chain = ["a.1", *(token for n in range(201) for token in (f"b.{n}", "add"))]
    assert usable(tuple(chain[:-2]))
    assert not usable(tuple(chain))


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (0, "a.2"),
        (2, "a.2 b.1 mul"),
        (4, "b.2"),
        (5, "a.1 b.2 max"),
        (6, "a.2 b.1 mul a.1 b.2 max add"),
    ],
)
def test_a_branch_is_what_ends_there(end: int, expected: str) -> None:
    assert branch(TREE, end) == words(expected)


def test_a_scion_takes_the_place_of_a_branch() -> None:
    assert grafted(TREE, 2, ("b.2",)) == words("b.2 a.1 b.2 max add")
    assert grafted(TREE, 4, words("a.1 b.1 add")) == words("a.2 b.1 mul a.1 a.1 b.1 add max add")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ("a.1 b.1 add", "a.1 b.1 add"),
        # The sibling takes the parent's place: mul(a.1, max(b.1, b.1)) is mul(a.1, b.1).
        ("a.1 b.1 b.1 max mul", "a.1 b.1 mul"),
        # add(mul(a.1, b.1), max(a.1, b.2)) loses its second a.1 and with it max.
        ("a.1 b.1 mul a.1 b.2 max add", "a.1 b.1 mul b.2 add"),
        # A branch of which nothing is left goes whole.
        ("a.1 b.1 mul b.1 a.1 max add", "a.1 b.1 mul"),
        ("a.1 a.1 add", "a.1"),
    ],
)
def test_a_feature_stays_at_its_first_leaf_only(tree: str, expected: str) -> None:
    assert without_repeats(words(tree)) == words(expected)


def test_the_order_of_operands_does_not_count() -> None:
    # Of two operands the one with the earliest feature comes first, at every node.
    assert normal(TREE, FEATURES) == words("a.1 b.2 max a.2 b.1 mul add")
    swapped = words("b.1 a.2 mul b.2 a.1 max add")
    assert normal(swapped, FEATURES) == normal(TREE, FEATURES)
    assert normal(words("b.1 a.1 concat_dense"), FEATURES) == words("a.1 b.1 concat_dense")
    # What is joined first does count.
    assert normal(words("a.1 a.2 b.1 add add"), FEATURES) == words("a.1 a.2 b.1 add add")
    assert normal(words("a.1 a.2 add b.1 add"), FEATURES) == words("a.1 a.2 add b.1 add")


def test_nodes_are_named_in_their_order() -> None:
    assert to_nodes(TREE) == [
        ("mul", ("a.2", "b.1")),
        ("max", ("a.1", "b.2")),
        ("add", ("node1", "node2")),
    ]


def test_trees_and_nodes_are_the_same_thing() -> None:
    draw = Random(0)
    names = [f"{m}.{n}" for m in "abc" for n in range(4)]
    for _ in range(200):
        tree = random_tree(names, draw)
        assert from_nodes(to_nodes(tree)) == tree


def found(**changes: Any) -> dict[str, Any]:
    data = FusionTree(FEATURES, 32, 8, TREE, {"seed": 3}).to_dict()
    return {**data, **changes}


def node(op: Any, *inputs: Any) -> dict[str, Any]:
    return {"op": op, "inputs": list(inputs)}


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tree = FusionTree(FEATURES, 32, 8, TREE[:3], {"seed": 3})
    tree.save(tmp_path / "genotype.json")
    again = load_architecture(tmp_path / "genotype.json")
    assert again == FusionTree.load(tmp_path / "genotype.json") == tree
    assert again.provenance == {"seed": 3}
    assert json.loads((tmp_path / "genotype.json").read_text()) == {
        "format": "bmnas.tree/1",
        "features": ["a.1", "a.2", "b.1", "b.2"],
        "width": 32,
        "length": 8,
        "nodes": [{"op": "mul", "inputs": ["a.2", "b.1"]}],
        "provenance": {"seed": 3},
    }


def test_live_features_are_in_the_order_of_all() -> None:
    assert FusionTree(FEATURES, 4, 1, TREE[:3]).live_features() == ("a.2", "b.1")
    assert FusionTree(FEATURES, 4, 1, TREE).live_features() == FEATURES


def test_it_is_shown_as_text() -> None:
    tree = FusionTree(FEATURES, 6, 4, words("a.1 b.1 concat_dense a.2 add"))
    lines = genotype_text(tree).splitlines()
    assert lines[0] == "tree of 3 features, vectors of 6, L = 4 positions"
    assert lines[-5:] == [
        "└─ add",
        "   ├─ concat + dense  linear 12 → 6",
        "   │  ├─ a.1",
        "   │  └─ b.1",
        "   └─ a.2",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "bmnas.tree/2"}, "format: received 'bmnas.tree/2', expected "),
        ({"width": 0}, "width: received 0, expected from 1 to 65536"),
        ({"width": True}, "width: received True, expected an integer"),
        ({"length": "8"}, "length: received '8', expected an integer"),
        ({"features": ["a.1"]}, "features: received ['a.1'], expected at least two"),
        ({"features": ["a.1", "a.1"]}, "features: received ['a.1', 'a.1'], expected names that"),
        ({"features": ["add", "a.1"]}, "features[0]: received 'add', expected a name such as"),
        ({"nodes": []}, "nodes: received [], expected at least one node"),
        ({"nodes": {}}, "nodes: received {}, expected a list"),
        ({"nodes": [3]}, "nodes[0]: received 3, expected a table"),
        ({"nodes": [{"op": "add"}]}, "nodes[0]: expected the key 'inputs', which is missing"),
        ({"nodes": [node("sub", "a.1", "b.1")]}, "nodes[0].op: received 'sub', expected one of"),
        (
            {"nodes": [node(["add"], "a.1", "b.1")]},
            "nodes[0].op: received ['add'], expected a string",
        ),
        ({"nodes": [node("add", "a.1")]}, "nodes[0].inputs: received ['a.1'], expected two names"),
        ({"nodes": [node("add", "a.1", 3)]}, "nodes[0].inputs[1]: received 3, expected a string"),
        (
            {"nodes": [node("add", "a.1", "c.1")]},
            "nodes[0].inputs: received 'c.1', expected a feature or an earlier node that nothing",
        ),
        ({"nodes": [node("add", "a.1", "a.1")]}, "nodes[0].inputs: received 'a.1', expected a "),
        ({"nodes": [node("add", "a.1", "node1")]}, "nodes[0].inputs: received 'node1', expected"),
        (
            {"nodes": [node("add", "a.1", "b.1"), node("mul", "a.1", "node1")]},
            "nodes[1].inputs: received 'a.1', expected a feature or an earlier node",
        ),
        (
            {"nodes": [node("add", "a.1", "b.1"), node("mul", "a.2", "b.2")]},
            "nodes: received 'node1, which nothing reads', expected one root",
        ),
        (
            {"nodes": [node("add", "a.1", "a.2")]},
            "nodes: received ['a.1', 'a.2'], expected features of two modalities or more",
        ),
        ({"provenance": {"best_val": float("inf")}}, "provenance: received inf, expected finite"),
        ({"extra": 1}, "received key 'extra', expected only features"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(found(**changes)).replace("Infinity", "1e999"))
    with pytest.raises(GenotypeError) as line:
        load_architecture(path)
    assert str(line.value).startswith(f"{path}: {message}")
    assert "\n" not in str(line.value)


def test_a_file_of_endless_depth_is_refused(tmp_path: Path) -> None:
    names = ["a.0", *(f"b.{n}" for n in range(3000))]
    nodes = [node("add", "a.0", "b.0")]
    nodes += [node("add", f"node{n}", f"b.{n}") for n in range(1, 3000)]
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(found(features=names, nodes=nodes)))
    with pytest.raises(GenotypeError, match="nodes: received '3000 levels', expected at most 200"):
        load_architecture(path)


@pytest.mark.parametrize(
    "tokens",
    [(), ("a.1",), ("add",), words("a.1 b.1"), words("a.1 add b.1"), words("a.1 b.1 add add")],
)
def test_tokens_that_are_no_tree_are_refused(tokens: tuple[str, ...]) -> None:
    with pytest.raises(GenotypeError, match="expected a tree with an operation, in postfix order"):
        FusionTree(FEATURES, 4, 1, tokens)


def test_an_unknown_token_and_a_repeated_leaf_are_refused() -> None:
    with pytest.raises(GenotypeError, match=r"received 'c\.9', expected a feature or an op"):
        FusionTree(FEATURES, 4, 1, ("a.1", "c.9", "add"))
    with pytest.raises(GenotypeError, match="expected every feature at one leaf at most"):
        FusionTree(FEATURES, 4, 1, words("a.1 b.1 add a.1 mul"))


def test_names_of_features_are_no_operations() -> None:
    # Tokens of both kinds stand in one tuple.
    assert not [operation for operation in OPERATIONS if "." in operation]
