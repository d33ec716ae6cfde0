from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bmnas.machine.errors import UserError
from bmnas.tasks.columns import Columns, read_npz


def error_of(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def message_of(path: Path) -> str | None:
    """Return why a file is refused; an error that is no UserError is not caught."""
    try:
        Columns([path]).get(path.stem if path.suffix == ".npy" else "a")
    except UserError as error:
        message = str(error)
        return message if "\n" not in message else pytest.fail(message)
    return None


def test_npz_members_are_read_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.arange(3), s=np.array(["p", "q"]))
    columns = Columns([tmp_path / "x.npz"])
    assert columns.get("a").tolist() == [0, 1, 2]
    assert columns.get("s", text=True).tolist() == ["p", "q"]
    assert columns.get("a") is columns.get("a")


def test_npy_is_mapped_and_called_like_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", np.arange(6.0).reshape(3, 2))
    array = Columns([tmp_path / "big.npy"]).get("big")
    assert isinstance(array, np.memmap)
    assert array.shape == (3, 2)


def test_jsonl_fields_are_arrays(tmp_path: Path) -> None:
    lines = [
        {"text": "a b", "n": 1, "v": [1, 2.5], "ok": True},
        {"text": "ä", "n": 2, "v": [3, 4], "late": 5},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    columns = Columns([path])
    assert columns.get("text").tolist() == ["a b", "ä"]
    assert columns.get("n").tolist() == [1, 2]
    assert columns.get("v").tolist() == [[1, 2.5], [3, 4]]
    assert columns.get("ok").tolist() == ["True", ""]
    assert np.isnan(columns.get("late")).tolist() == [True, False]


def test_csv_columns_are_numbers_where_all_fields_are(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,x,word\n1,0.5,"a, b"\n2,nan,7\n', encoding="utf-8-sig")
    columns = Columns([tmp_path / "x.csv"])
    assert columns.get("id").dtype == np.int64
    assert columns.get("x").dtype == np.float64
    assert columns.get("word").tolist() == ["a, b", "7"]
    assert columns.get("id", text=True).tolist() == ["1", "2"]


def test_one_name_in_two_files_must_be_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", labels=np.arange(2))
    (tmp_path / "y.csv").write_text("labels\n5\n6\n")
    columns = Columns([tmp_path / "x.npz", tmp_path / "y.csv"])
    message = error_of(lambda: columns.get("labels"))
    assert message.endswith("several files have: write 'x.npz:labels' or 'y.csv:labels'")
    assert columns.get("y.csv:labels").tolist() == [5, 6]


def test_an_unknown_array_is_told_with_the_nearest(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", phone=np.arange(2), watch=np.arange(2))
    message = error_of(lambda: Columns([tmp_path / "x.npz"]).get("fone"))
    assert message == "received array 'fone', expected one of phone, watch; did you mean 'phone'?"


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "trapped",))

    objects = np.array([Trap(), None], dtype=object)
    np.savez(tmp_path / "x.npz", a=objects)
    np.save(tmp_path / "y.npy", objects)
    for call in (
        lambda: Columns([tmp_path / "x.npz"]).get("a"),
        lambda: Columns([tmp_path / "y.npy"]),
    ):
        assert "an array of Python objects, which is never loaded" in error_of(call)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("kept", [0, 10, 400, -30])
def test_a_truncated_npz(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(100.0))
    path.write_bytes(path.read_bytes()[:kept])
    assert error_of(lambda: Columns([path])) == f"{path}: not an .npz file, or a truncated one"


def test_a_damaged_member(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).normal(size=500))
    damaged = bytearray(path.read_bytes())
    damaged[1000:1100] = bytes(100)
    path.write_bytes(bytes(damaged))
    assert "x.npz: a: cannot be read, perhaps truncated" in error_of(
        lambda: Columns([path]).get("a")
    )


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "x.npz: notes.txt: not an array" in error_of(lambda: Columns([path]).get("notes.txt"))


@pytest.mark.parametrize("seed", range(5))
def test_damage_of_any_kind_is_one_line(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    np.savez(tmp_path / "x.npz", a=np.arange(40.0), b=np.array(["p"]))
    np.save(tmp_path / "y.npy", np.arange(40.0))
    refused = 0
    for name in ("x.npz", "y.npy") * 40:
        whole = (tmp_path / name).read_bytes()
        damaged = np.frombuffer(whole, dtype=np.uint8).copy()
        damaged[rng.integers(0, min(len(whole), 140), 3)] = rng.integers(0, 256, 3)
        path = tmp_path / f"damaged{Path(name).suffix}"
        path.write_bytes(damaged.tobytes())
        refused += message_of(path) is not None
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", "", "received an empty file, expected one JSON object a line"),
        ("x.jsonl", '{"a": 1}\n{"a": ', "line 2: not JSON"),
        ("x.jsonl", "[1]", "line 1: received [1], expected an object"),
        ("x.jsonl", '{"a": 1}\n\n{"a": "b"}', "line 3: a: received 'b', expected a number or"),
        ("x.jsonl", '{"a": null}', "line 1: a: received None, expected a number"),
        ("x.jsonl", '{"a": "b"}\n{"a": 1}', "line 2: a: received 1, expected a string"),
        ("x.jsonl", '{"a": [1]}\n{"a": [1, 2]}', "a: lists of different lengths: fill them up"),
        (
            "x.jsonl",
            '{"a": 1}\n{"a": {"b": 1, "c": {"d": 2}}}\n{"a": [{"e": 1}]}',
            "line 2: a: received objects with the keys b, c, e (rows: 2 of 3), expected strings, "
            "numbers or lists of them: make each key a field of its own, as pandas.json_normalize",
        ),
        ("x.jsonl", '{"a": 99999999999999999999}', "an integer of more than 64 bits"),
        ("x.csv", "", "received no row"),
        ("x.csv", "a,b\n", "received no row"),
        ("x.csv", "a,b\n1,2\n3\n", "line 3: received 1 fields, expected 2 as in the header"),
        ("x.csv", "a,a\n1,2\n", "the header names a column twice: a, a"),
        ("x.csv", "a\n99999999999999999999\n", "an integer of more than 64 bits"),
        ("x.csv", 'a\n"open', "cannot be read"),
        ("x.txt", "hello", "received a .txt file, expected one of .npz, .npy, .jsonl, .csv"),
        ("x.xlsx", "hello", ".parquet: save it as CSV in UTF-8"),
        ("x.json", "[]", ": write one object a line"),
        ("x.csv.gz", "hello", ".parquet: unpack it"),
        ("x.npz", "hello", "not an .npz file, or a truncated one"),
        ("x.npy", "hello", "received an array of Python objects"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    message = error_of(lambda: Columns([tmp_path / name]).get("a"))
    assert expected in message
    assert name in message


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    for name in ("x.csv", "x.jsonl"):
        (tmp_path / name).write_bytes(b'{"a": "\xff"}\n1\n')
        assert f"{name}: received byte 0xff, expected UTF-8" in error_of(
            lambda n=name: Columns([tmp_path / n])
        )


def test_read_npz_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    assert error_of(lambda: read_npz(path, ["a"])) == f"{path}: no such file"
    np.savez(path, a=np.arange(2))
    assert read_npz(path, ["a"])["a"].tolist() == [0, 1]
    assert error_of(lambda: read_npz(path, ["b"])).startswith(f"{path}: received array 'b'")
