from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tables import FEATURES, made_table

from bmnas.lab.tables import Table, canonical, load
from bmnas.machine.errors import UserError
from bmnas.spaces.cells.genotype import Cell, Genotype, Step


def genotype(*steps: Step, inputs: tuple[str, str] = ("a.2", "b.1"), **shape: int) -> Genotype:
    size = {"channels": 8, "length": 4, **shape}
    return Genotype(FEATURES, cells=(Cell(inputs, steps),), **size)


ONE = Step("concat_fc", ("x", "y")), Step("attention", ("y", "step1"))
SAME = Step("zero", ("x", "y")), Step("concat_fc", ("y", "x")), Step("attention", ("y", "step2"))


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = made_table()
    table.save(tmp_path / "table.npz")
    found = load(tmp_path / "table.npz")
    assert found.about == table.about
    assert found.genotypes == table.genotypes
    assert set(found.arrays) == set(table.arrays)
    for name, array in table.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert list(tmp_path.iterdir()) == [tmp_path / "table.npz"]


def test_the_same_table_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        made_table().save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_query_finds_every_entry_and_isomorphic_ones() -> None:
    table = made_table()
    assert all(table.entry(entry.genotype) == entry for entry in table)
    found = table.entry(genotype(*ONE))
    assert found.genotype != genotype(*ONE) or canonical(found.genotype) == canonical(
        genotype(*ONE)
    )
    assert found == table.entry(genotype(*SAME))
    assert found.validation == tuple(table.arrays["validation"][found.number])
    assert found.test == tuple(table.arrays["test"][found.number])
    assert (found.parameters, found.seconds) == (found.number, 0.5)
    assert found.latency_ms == table.arrays["latency_ms"][found.number]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (genotype(*ONE, channels=16), "of channels 16 and .*, of channels 8 and length 4"),
        (genotype(*ONE, length=2), "and length 2, expected .* and length 4"),
        (genotype(ONE[0]), r"a.2,b.1:concat_fc\(x,y\) of .*, expected .* 1 Cells of 2 steps"),
        (genotype(*ONE, inputs=("b.1", "a.2")), "the inputs of each Cell in this order"),
        (genotype(*ONE * 8), "expected a network of the table: 1 Cells of 2 steps"),
        (
            Genotype(("a.1", "c.1"), 8, 4, (Cell(("a.1", "c.1"), ONE),)),
            "received a.1,c.1:.*on a.1, a.2, b.1, b.2, the",
        ),
    ],
)
def test_what_the_table_does_not_hold_is_one_clear_line(wrong: Genotype, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made_table().entry(wrong)


def small() -> Table:
    """Four entries with mean test scores .5, .7, .7 and .9, and validation the other way round."""
    table = made_table(seeds=2)
    arrays = {name: array[:4].copy() for name, array in table.arrays.items()}
    arrays["test"] = np.array([[0.4, 0.6], [0.7, 0.7], [0.6, 0.8], [0.9, 0.9]])
    arrays["validation"] = arrays["test"][::-1].copy()
    return Table(table.about, table.genotypes[:4], arrays)


def test_percentile_and_regret_by_hand() -> None:
    table = small()
    entries = list(table)
    assert [table.percentile(entry) for entry in entries] == [25, 75, 75, 100]
    assert [table.percentile(entry, "validation") for entry in entries] == [100, 75, 75, 25]
    assert [table.regret(entry) for entry in entries] == pytest.approx([0.4, 0.2, 0.2, 0])
    assert table.best().number == 3
    assert table.best("validation").number == 0


def written(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = tmp_path / "table.npz"
    small().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)
    return path


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({name: value})


def more_cells(arrays: dict[str, Any]) -> None:
    arrays["about"] = np.array(str(arrays["about"]).replace('"cells": 1', '"cells": 9'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("seconds"), "seconds"),
        (put("format", np.array("bmnas.tabular/2")), "received format 'bmnas.tabular/2', expected"),
        (put("test", np.zeros((3, 2))), r"test: received float64 \(3, 2\), expected .*\(4, 2\)"),
        (put("test", np.zeros((4, 0))), "no axis empty"),
        (put("seconds", np.zeros(4, dtype=np.float32)), "seconds: received float32"),
        (put("seconds", np.full(4, np.nan)), "seconds: received a number that is not finite"),
        (put("about", np.array("{")), "about: not JSON"),
        (put("about", np.array("[]")), "about: received \\[\\], expected"),
        (put("cells", np.array([1, 2, 3, 4])), "cells: expected texts"),
        (put("cells", np.array(["[]"] * 4)), r"cells\[0\]: cells: received \[\], expected"),
        (lambda a: a.update(cells=a["cells"][[0, 1, 1, 2]]), "received a network twice"),
        (more_cells, r"cells\[0\]: expected 9 Cells of"),
        (put("format", np.array([None])), "Object arrays|objects"),
    ],
)
def test_a_damaged_table_is_one_clear_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = written(tmp_path, change)
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_no_table_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    with pytest.raises(UserError, match="no such file"):
        load(path)
    small().save(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-4]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"table\.npz: "):
            load(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"array\.npy"):
        load(tmp_path / "array.npy")


def test_the_shape_in_about_is_checked(tmp_path: Path) -> None:
    table = small()
    table.about["search"]["cells"] = 0
    table.save(tmp_path / "table.npz")
    with pytest.raises(UserError, match=r"search\.cells: received 0, expected at least 1"):
        load(tmp_path / "table.npz")
