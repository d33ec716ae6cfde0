from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from bmnas.machine.errors import UserError
from bmnas.machine.schema import NotEmpty, OneOf, Range, SchemaError, plain, read


@dataclass(frozen=True)
class Split:
    train: Annotated[float, Range(above=0)]
    test: Annotated[float, Range(above=0)]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the two together."""
        if self.train + self.test > 1:
            yield "test", f"received {self.test} beside {self.train}, expected a sum of at most 1"


@dataclass(frozen=True)
class File:
    name: Annotated[str, NotEmpty()]
    split: str | Split
    kind: Literal["multiclass", "multilabel"] = "multiclass"
    cells: Annotated[int, Range(1)] = 2
    size: Annotated[int, Range(1, 8)] = 4
    dropout: Annotated[float, Range(0, below=1)] = 0.1
    threshold: Annotated[float, Range(above=0, below=1)] | None = None
    rate: Annotated[float, Range(0)] = 1.0
    flag: bool = False
    files: str | tuple[str, ...] = ()
    splits: tuple[Split, ...] = ()
    named: Mapping[str, Split] = field(default_factory=dict)
    preset: Annotated[str, OneOf(("default", "digits"))] = "default"
    source: Any = None


GOOD: dict[str, Any] = {"name": "mine", "split": "part"}


def told(**values: Any) -> str:
    with pytest.raises(UserError) as line:
        read(File, {**GOOD, **values}, "mine.toml")
    message = str(line.value)
    assert message.startswith("mine.toml: ")
    assert "\n" not in message
    return message.removeprefix("mine.toml: ")


def test_what_is_missing_takes_its_default() -> None:
    assert read(File, GOOD) == File("mine", "part")


def test_a_round_trip_through_json() -> None:
    half = Split(0.5, 0.5)
    file = File("mine", half, threshold=0.3, files=("a", "b"), splits=(half,), named={"a": half})
    assert read(File, json.loads(json.dumps(plain(file)))) == file


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": 3}, "name: received 3, expected a string"),
        ({"name": ""}, "name: received '', expected one that is not empty"),
        ({"cells": "two"}, "cells: received 'two', expected an integer"),
        ({"cells": 2.0}, "cells: received 2.0, expected an integer"),
        ({"cells": True}, "cells: received True, expected an integer"),
        ({"cells": 0}, "cells: received 0, expected at least 1"),
        ({"size": 9}, "size: received 9, expected from 1 to 8"),
        ({"dropout": 1.0}, "dropout: received 1.0, expected from 0 to below 1"),
        ({"dropout": float("nan")}, "dropout: received nan, expected from 0 to below 1"),
        ({"threshold": 0.0}, "threshold: received 0.0, expected between 0 and 1"),
        ({"threshold": "a"}, "threshold: received 'a', expected a number"),
        ({"rate": float("inf")}, "rate: received inf, expected 0 or more"),
        ({"rate": -1}, "rate: received -1, expected 0 or more"),
        ({"flag": 1}, "flag: received 1, expected true or false"),
        ({"files": 1}, "files: received 1, expected a string or a list of strings"),
        ({"files": ["a", 1]}, "files[1]: received 1, expected a string"),
        ({"splits": {}}, "splits: received {}, expected a list"),
        ({"split": 3}, "split: received 3, expected a string or a table"),
        ({"split": {"train": 0, "test": 1}}, "split.train: received 0, expected more than 0"),
        ({"named": {"a": {"train": 1}}}, "named.a: expected the key 'test', which is missing"),
        (
            {"splits": [{"train": 0.5, "test": 0.6}]},
            "splits[0].test: received 0.6 beside 0.5, expected a sum of at most 1",
        ),
        (
            {"kind": "multi-class"},
            "kind: received 'multi-class', expected one of multiclass, multilabel; did you mean "
            "'multiclass'?",
        ),
        ({"kind": 3}, "kind: received 3, expected one of multiclass, multilabel"),
        (
            {"preset": "digit"},
            "preset: received 'digit', expected one of default, digits; did you mean 'digits'?",
        ),
    ],
)
def test_a_wrong_value_names_place_find_and_need(values: dict[str, Any], message: str) -> None:
    assert told(**values) == message


def test_all_problems_are_told_at_once() -> None:
    message = told(cels=3, cells=0, split={"train": "a"})
    assert message.startswith("received key 'cels', expected only name, split, kind, cells, ")
    for part in (
        "; did you mean 'cells'?; ",
        "cells: received 0, expected at least 1",
        "split.train: received 'a', expected a number",
        "split: expected the key 'test', which is missing",
    ):
        assert part in message
    with pytest.raises(SchemaError) as error:
        read(File, {})
    assert [str(problem) for problem in error.value.problems] == [
        "expected the key 'name', which is missing",
        "expected the key 'split', which is missing",
    ]


def test_a_long_list_of_problems_and_a_long_value_are_cut_short() -> None:
    assert told(splits=[1] * 15).endswith("splits[11]: received 1, expected a table; and 3 more")
    assert len(told(cells="a" * 1000)) < 130


def test_unknown_keys_may_be_left_out() -> None:
    assert read(File, {**GOOD, "later": 3}, ignore_unknown=True) == File("mine", "part")


def test_whole_numbers_may_stand_for_floats() -> None:
    assert type(read(File, {**GOOD, "rate": 1}).rate) is float
    assert "rate: received 1000" in told(rate=10**400)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(UserError, match=r"^a\.json: received .*, expected a table$"):
        read(File, data, "a.json")
