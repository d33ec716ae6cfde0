from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmnas.machine.errors import UserError
from bmnas.spaces.cells.genotype import Cell, Genotype, GenotypeError, Step
from bmnas.spaces.cells.known import FUSION_MODULES, known_genotype
from bmnas.spaces.cells.operations import PAPER

EXAMPLE = """{
  "format": "bmnas.genotype/1",
  "features": ["image.1", "image.2", "audio.1", "audio.2"],
  "channels": 64, "length": 8,
  "cells": [
    {"inputs": ["image.2", "audio.2"],
     "steps": [{"op": "attention", "inputs": ["x", "y"]},
               {"op": "linear_glu", "inputs": ["x", "step1"]}]},
    {"inputs": ["cell1", "audio.1"],
     "steps": [{"op": "concat_fc", "inputs": ["x", "y"]},
               {"op": "sum", "inputs": ["step1", "y"]}]}
  ],
  "provenance": {"task": "digits", "strategy": "bmnas", "seed": 0, "run": "…", "best_val": 0.97,
                 "versions": {}}
}"""


@st.composite
def genotypes(draw: st.DrawFn) -> Genotype:
    names = st.from_regex(r"[A-Za-z0-9_-]{1,6}\.[A-Za-z0-9_.-]{1,6}", fullmatch=True)
    features = draw(st.lists(names, min_size=2, max_size=6, unique=True))
    nodes, taken, cells = list(features), set(), []
    for k in range(draw(st.integers(1, 4))):
        free = [n for n in nodes if n not in taken]
        first = draw(st.sampled_from(free))
        second = draw(st.sampled_from([n for n in nodes if n != first]))
        pair = (first, second) if draw(st.booleans()) else (second, first)
        inner, steps = ["x", "y"], []
        for m in range(draw(st.integers(1, 3))):
            inputs = draw(st.permutations(inner))[:2]
            steps.append(Step(draw(st.sampled_from(PAPER)), (inputs[0], inputs[1])))
            inner.append(f"step{m + 1}")
        cells.append(Cell(pair, tuple(steps)))
        nodes.append(f"cell{k + 1}")
        taken.update(pair)
    sizes = st.integers(1, 65536)
    provenance = draw(
        st.dictionaries(
            st.text(max_size=5),
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=5)
            | st.lists(st.integers(), max_size=3),
            max_size=3,
        )
    )
    return Genotype(tuple(features), draw(sizes), draw(sizes), tuple(cells), provenance)


@given(genotypes())
@settings(deadline=None, max_examples=50)
def test_every_genotype_survives_its_text(genotype: Genotype) -> None:
    again = Genotype.from_dict(json.loads(genotype.to_json()))
    assert again == genotype
    assert again.provenance == genotype.provenance
    assert again.to_json() == genotype.to_json()


@given(genotypes())
@settings(deadline=None, max_examples=30)
def test_live_features_are_those_some_live_step_or_residual_reads(genotype: Genotype) -> None:
    read = set()
    for cell in genotype.cells:
        read.add(cell.inputs[0])
        for step in cell.steps:
            if step.op != "zero" and "y" in step.inputs:
                read.add(cell.inputs[1])
    assert genotype.live_features() == tuple(f for f in genotype.features if f in read)


def test_the_example_of_the_format_loads_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "genotype.json"
    path.write_text(EXAMPLE, encoding="utf-8")
    genotype = Genotype.load(path)
    assert genotype.features == ("image.1", "image.2", "audio.1", "audio.2")
    assert (genotype.channels, genotype.length) == (64, 8)
    assert genotype.cells[1] == Cell(
        ("cell1", "audio.1"), (Step("concat_fc", ("x", "y")), Step("sum", ("step1", "y")))
    )
    assert genotype.provenance["best_val"] == 0.97
    assert genotype.live_features() == ("image.2", "audio.1", "audio.2")
    genotype.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text("utf-8")) == json.loads(EXAMPLE)


def test_steps_that_do_nothing_are_not_live() -> None:
    cell = Cell(("a.1", "b.1"), (Step("zero", ("x", "y")), Step("sum", ("x", "step1"))))
    assert cell.live_steps() == (1,)
    assert not cell.reads_y()


def _put(*keys: Any) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def with_value(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(data: Any) -> None:
            for key in keys[:-1]:
                data = data[key]
            data[keys[-1]] = value

        return change

    return with_value


def _drop(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


SUM = {"op": "sum", "inputs": ["x", "y"]}
BROKEN = [
    (_put("format")("bmnas.genotype/2"), "format: received 'bmnas.genotype/2', expected 'bmnas"),
    (_put("format")(1), "format: received 1, expected 'bmnas.genotype/1'"),
    (_drop("format"), "expected the key 'format', which is missing"),
    (_drop("cells"), "expected the key 'cells', which is missing"),
    (_put("pickle")("x"), "received key 'pickle', expected only features"),
    (_put("channels")(0), "channels: received 0, expected from 1 to 65536"),
    (_put("channels")(8.0), "channels: received 8.0, expected an integer"),
    (_put("length")(True), "length: received True, expected an integer"),
    (_put("length")(10**9), "length: received 1000000000, expected from 1"),
    (_put("features")("image.1"), "features: received 'image.1', expected a list"),
    (_put("features")(["image.1"]), "features: received ['image.1'], expected at least two"),
    (_put("features", 1)(7), "features[1]: received 7, expected a string"),
    (_put("features", 1)("image"), "features[1]: received 'image', expected a name such as"),
    (_put("features", 1)("image.1"), "features: received ['image.1', 'image.1'"),
    (_put("cells")([]), "cells: received [], expected at least one Cell"),
    (_put("cells")({}), "cells: received {}, expected a list"),
    (_put("cells", 0)(3), "cells[0]: received 3, expected a table"),
    (_drop("cells", 1, "steps"), "cells[1]: expected the key 'steps', which is missing"),
    (_put("cells", 0, "steps")([]), "cells[0].steps: received [], expected at least one step"),
    (_put("cells", 0, "inputs")(["image.1"]), "cells[0].inputs: received ['image.1'], expected"),
    (_put("cells", 0, "inputs", 0)("text.1"), "cells[0].inputs: received 'text.1', expected a"),
    (_put("cells", 0, "inputs", 0)("cell2"), "cells[0].inputs: received 'cell2', expected a feat"),
    (_put("cells", 0, "inputs", 0)("cell1"), "cells[0].inputs: received 'cell1', expected a feat"),
    (_put("cells", 0, "inputs", 0)("audio.2"), "cells[0].inputs: received ['audio.2', 'audio.2']"),
    (
        _put("cells", 1, "inputs")(["image.2", "audio.2"]),
        "cells[1].inputs: received ['image.2', 'audio.2'], expected at least one input that no",
    ),
    (_put("cells", 0, "steps", 1, "op")("foo"), "cells[0].steps[1].op: received 'foo', expected o"),
    (
        _put("cells", 0, "steps", 1, "op")(None),
        "cells[0].steps[1].op: received None, expected a str",
    ),
    (_put("cells", 0, "steps", 0)("sum"), "cells[0].steps[0]: received 'sum', expected a table"),
    (
        _put("cells", 0, "steps", 0, "inputs")(["x", "step1"]),
        "cells[0].steps[0].inputs: received 'step1', expected x, y or an earlier step: x, y",
    ),
    (
        _put("cells", 0, "steps", 1, "inputs")(["x", "step2"]),
        "cells[0].steps[1].inputs: received 'step2', expected x, y or an earlier step",
    ),
    (
        _put("cells", 0, "steps", 1, "inputs")(["x", "x"]),
        "cells[0].steps[1].inputs: received ['x', 'x'], expected two different names",
    ),
    (
        _put("cells", 0, "steps", 1, "inputs")(["x", "y", "step1"]),
        "cells[0].steps[1].inputs: received ['x', 'y', 'step1'], expected two diff",
    ),
    (_put("cells", 0, "steps", 0)({**SUM, "w": 1}), "cells[0].steps[0]: received key 'w', "),
    (_put("provenance")([]), "provenance: received [], expected a table"),
]


def message_of(path: Path) -> str:
    with pytest.raises(GenotypeError) as caught:
        Genotype.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert "expected" in message
    assert message.count(str(path)) == 1
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(("change", "start"), BROKEN, ids=[text[:40] for _, text in BROKEN])
def test_a_broken_genotype_gets_one_line_that_names_the_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], start: str
) -> None:
    data = json.loads(EXAMPLE)
    change(data)
    path = tmp_path / "g.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert message_of(path).startswith(start)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not a JSON file"),
        (b"hello", "not a JSON file"),
        (EXAMPLE.encode()[:200], "not a JSON file"),
        (b"\xff\xfe{}", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"[]", "received [], expected an object"),
        (b"null", "received None, expected an object"),
        (EXAMPLE.encode().replace(b"0.97", b"NaN"), "received NaN, expected a finite number"),
        (EXAMPLE.encode().replace(b"0.97", b"-Infinity"), "received -Infinity, expected a finite"),
        (EXAMPLE.encode().replace(b"0.97", b"1e999"), "provenance: received inf, expected finite"),
        (EXAMPLE.encode().replace(b"64", b"1e999"), "channels: received inf, expected an integer"),
        (EXAMPLE.encode().replace(b" 64", b" 9" + b"9" * 5000), "not a JSON file"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_file_that_is_no_genotype_gets_one_line(
    tmp_path: Path, content: bytes, part: str
) -> None:
    path = tmp_path / "g.json"
    path.write_bytes(content)
    message = message_of(path)
    assert part in message
    assert len(message) < 500


def test_a_file_of_100_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert message_of(path).startswith("received 100,000,000 bytes, expected at most 1,000,000")


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    assert "cannot be read" in message_of(tmp_path)
    assert "cannot be read: No such file" in message_of(tmp_path / "none.json")


def test_a_long_value_is_shortened_in_the_message() -> None:
    data = {**json.loads(EXAMPLE), "channels": "9" * 1000}
    with pytest.raises(GenotypeError, match=r"^genotype: channels: received '9{76}…, expected"):
        Genotype.from_dict(data)


def test_a_genotype_made_in_python_is_checked_and_names_the_place() -> None:
    with pytest.raises(GenotypeError, match=r"^cells\[0\]\.steps\[0\]\.op: received 'foo'"):
        Genotype(("a.1", "b.1"), 8, 4, (Cell(("a.1", "b.1"), (Step("foo", ("x", "y")),)),))


def test_saving_into_a_place_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    genotype = known_genotype("sum", ("a.1", "b.1"), channels=8, length=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        genotype.save(tmp_path / "file" / "genotype.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", FUSION_MODULES)
def test_known_modules_are_valid_genotypes(name: str) -> None:
    genotype = known_genotype(name, ("image.3", "text.2"), channels=16, length=4)
    assert genotype == Genotype.from_dict(genotype.to_dict())
    assert genotype.cells == (Cell(("image.3", "text.2"), FUSION_MODULES[name]),)
    assert genotype.live_features() == ("image.3", "text.2")


def test_known_modules_are_what_their_authors_defined() -> None:
    assert [s.op for s in FUSION_MODULES["sum"]] == ["sum"]
    assert [s.op for s in FUSION_MODULES["concat_fc"]] == ["concat_fc"]
    assert FUSION_MODULES["mha2"] == (Step("attention", ("x", "y")),) * 2
    assert FUSION_MODULES["aoa"] == (
        Step("attention", ("x", "y")),
        Step("linear_glu", ("x", "step1")),
    )


def test_the_cells_found_on_mmimdb_are_kept_by_name(tmp_path: Path) -> None:
    features = ("image.2", "text.0")
    genotype = known_genotype("mmimdb", features, channels=192, length=16)
    assert [cell.inputs for cell in genotype.cells] == [features, ("text.0", "cell1")]
    assert [step.op for cell in genotype.cells for step in cell.steps] == [
        "concat_fc",
        "linear_glu",
    ]
    genotype.save(tmp_path / "genotype.json")
    assert Genotype.load(tmp_path / "genotype.json") == genotype


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(UserError, match=r"received genotype 'foo', expected one of sum, .*mmimdb"):
        known_genotype("foo", ("a.1", "b.1"), channels=8, length=4)
