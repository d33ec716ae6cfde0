from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bmnas_serve.sources import TextFiles
from media_files import MEDIA_TASK, media_table, write_table

from bmnas.machine.errors import UserError
from bmnas.tasks import check_task, load_task_file, notes, text_arrays
from bmnas.tasks.columns import Columns, PartColumns
from bmnas.tasks.sources import Source, fitted_vector
from bmnas.tasks.task import draw_groups

TASK = """
name = "pets"
kind = "multiclass"
data = "pets.csv"
labels = "label"
split = "part"
[modality.title]
array = "title"
type = "text"
[modality.facts]
columns = ["age", "weight", "city"]
type = "vector"
"""
DRAWN = "split = {train = 0.5, validation = 0.25, test = 0.25"


def rows_of(count: int = 24) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "title": f"w{rng.integers(9)} {('cat', 'dog')[n % 2]}",
            "age": "" if n % 7 == 3 else n,
            "weight": n / 2,
            "city": ("Rome", "Oslo")[n % 2],
            "patient": f"p{n // 4}",
            "label": ("cat", "dog")[n % 2],
            "tags": ("red | round", "round", "", "big|red")[n % 4],
            "part": ("train", "train", "validation", "test")[n // 2 % 4],
        }
        for n in range(count)
    ]


def load(folder: Path, *changes: tuple[str, str], rows: list[dict[str, Any]] | None = None) -> Any:
    text = TASK
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    write_table(folder / "pets.csv", rows or rows_of())
    (folder / "task.toml").write_text(text, encoding="utf-8")
    task = load_task_file(folder / "task.toml")
    check_task(task)
    return task


def test_tsv_and_parquet_hold_what_csv_holds(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = rows_of()
    expected = load(tmp_path)
    write_table(tmp_path / "pets.tsv", rows, "\t")
    whole = [{**row, "age": None if row["age"] == "" else row["age"]} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(whole), tmp_path / "pets.parquet")
    for name in ("pets.tsv", "pets.parquet"):
        found = load(tmp_path, ("pets.csv", name))
        assert np.array_equal(found.labels, expected.labels)
        for one, other in zip(found.modalities, expected.modalities, strict=True):
            assert np.array_equal(one.data, other.data)


def test_semicolons_between_fields(tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.csv", rows_of(), ";")
    columns = Columns([table])
    assert columns.get("label").tolist()[:2] == ["cat", "dog"]
    assert columns.get("weight").tolist() == [row["weight"] for row in rows_of()]
    (tmp_path / "b.csv").write_text('"a;b"\nx\n', encoding="utf-8-sig")
    assert Columns([tmp_path / "b.csv"]).names() == ["a;b"]


def test_a_folder_of_datasets_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table(
        {
            "title": ["a cat", None, "two dogs", "no dog"],
            "size": [1.5, 2.5, None, 0.5],
            "box": [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]],
            "label": [0, 1, 1, -1],
            "raw": [b"1", b"2", b"3", b"4"],
        }
    )
    folder = tmp_path / "pets" / "train"
    folder.mkdir(parents=True)
    files = []
    for number, rows in enumerate((table[:3], table[3:])):
        files.append({"filename": f"data-{number:05}-of-00002.arrow"})
        with pyarrow.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as stream:
            stream.write_table(rows)
    (folder / "state.json").write_text(json.dumps({"_data_files": files}), "utf-8")
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}), "utf-8")
    columns = Columns([folder])
    assert columns.names() == ["title", "size", "box", "label", "raw"]
    assert columns.get("title").tolist() == ["a cat", "", "two dogs", "no dog"]
    assert columns.get("label").tolist() == ["cat", "dog", "dog", ""]
    np.testing.assert_array_equal(columns.get("size"), [1.5, 2.5, np.nan, 0.5])
    np.testing.assert_array_equal(columns.get("box")[:2], [[1, 2], [np.nan, np.nan]])
    with pytest.raises(UserError, match="raw: received binary, expected numbers"):
        columns.get("raw")
    with pytest.raises(UserError, match="expected one of the folders in it: train, as"):
        Columns([folder.parent])
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}', "utf-8")
    with pytest.raises(UserError, match=r"state.json names x\.arrow, expected files"):
        Columns([folder])


def test_parquet_has_lists_and_booleans(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    held = {
        "tags": [["a", "b"], [], None],
        "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "good": [True, None, False],
        "uneven": [[1], [2, 3], [4]],
    }
    parquet.write_table(pyarrow.table(held), tmp_path / "a.parquet")
    columns = Columns([tmp_path / "a.parquet"])
    assert columns.get("tags").tolist() == [["a", "b"], ["", ""], ["", ""]]
    assert columns.get("vector").shape == (3, 2)
    assert columns.get("good").tolist() == ["true", "", "false"]
    with pytest.raises(UserError, match="uneven: lists of different lengths"):
        columns.get("uneven")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read"):
        Columns([tmp_path / "b.parquet"])


def test_a_file_for_each_part(tmp_path: Path) -> None:
    rows = rows_of()
    expected = load(tmp_path)
    names = ("train", "validation", "test")
    for name in names:
        write_table(tmp_path / f"{name}.csv", [row for row in rows if row["part"] == name])
    files = "data = {" + ", ".join(f'{name} = "{name}.csv"' for name in names) + "}"
    task = load(tmp_path, ('data = "pets.csv"', files), ('split = "part"', ""))
    assert np.bincount(task.part).tolist() == np.bincount(expected.part).tolist()
    for name in names:
        one, other = task.samples(name), expected.samples(name)
        assert np.array_equal(task.labels[one], expected.labels[other])
        facts = task.modality("facts").data[one], expected.modality("facts").data[other]
        assert np.allclose(*facts)
    with pytest.raises(UserError, match="leave one of them out"):
        load(tmp_path, ('data = "pets.csv"', files))
    with pytest.raises(UserError, match="expected the key 'split'"):
        load(tmp_path, ('split = "part"', ""))


def test_validation_is_drawn_from_train_where_it_has_no_file(tmp_path: Path) -> None:
    rows = rows_of(48)
    write_table(tmp_path / "a.csv", rows[:40])
    write_table(tmp_path / "b.csv", rows[40:])
    files = 'data = {train = "a.csv", validation = 0.3, test = "b.csv", group = "patient"}'
    task = load(tmp_path, ('data = "pets.csv"', files), ('split = "part"', ""))
    assert np.bincount(task.part).tolist() == [28, 12, 8]
    assert np.all(task.part[40:] == 2)
    groups = np.arange(48) // 4
    assert not set(groups[task.part == 0]) & set(groups[task.part == 1])


def test_parts_with_other_forms(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n2\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("x\nthree\n", encoding="utf-8")
    assert PartColumns([tmp_path / "a.csv", tmp_path / "b.csv"]).get("x").tolist() == [
        "1",
        "2",
        "three",
    ]
    np.savez(tmp_path / "c.npz", x=np.zeros((2, 3)))
    with pytest.raises(UserError, match="different forms"):
        PartColumns([tmp_path / "a.csv", tmp_path / "c.npz"]).get("x")


@pytest.mark.parametrize("folder", ["", "texts"])
def test_paths_of_a_part_are_relative_to_its_own_table(tmp_path: Path, folder: str) -> None:
    for part in ("train", "test"):
        (tmp_path / part / folder).mkdir(parents=True)
        (tmp_path / part / folder / "0.txt").write_text(f"of {part}", encoding="utf-8")
        write_table(tmp_path / part / "meta.csv", [{"title": "0.txt"}, {"title": "0.txt"}])
    columns = PartColumns([tmp_path / "train" / "meta.csv", tmp_path / "test" / "meta.csv"])
    rows, index = Source("title", TextFiles(), folder=folder).rows(columns, text=True)
    assert index is not None
    assert rows[index].tolist() == ["of train", "of train", "of test", "of test"]
    same = PartColumns([tmp_path / "train" / "meta.csv"] * 2)
    rows, index = Source("title", TextFiles(), folder=folder).rows(same, text=True)
    assert (rows.tolist(), len(rows)) == (["of train"], 1)


def test_the_path_of_one_sample_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("here", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    columns = Columns.of_fields({"title": "a.txt"})
    rows, _ = Source("title", TextFiles(), folder="texts").rows(columns, text=True)
    assert rows[0] == "here"


def test_categories_that_look_like_numbers_are_the_same_in_another_table(tmp_path: Path) -> None:
    codes = ["01", "02", "x"]
    first = Columns([write_table(tmp_path / "a.csv", [{"code": code} for code in codes])])
    other = Columns([write_table(tmp_path / "b.csv", [{"code": code} for code in codes[:2]])])
    source = fitted_vector(first, ["code"], np.arange(3))
    expected, _ = source.rows(first, text=False)
    rows, _ = source.rows(other, text=False)
    assert rows[:2].tolist() == expected[:2].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_decimal_commas_between_semicolons(tmp_path: Path) -> None:
    rows = [{"a": a, "b": b} for a, b in (("1,5", "1,5"), ("-2", "x"), ("0,25", "2"))]
    columns = Columns([write_table(tmp_path / "a.csv", rows, ";")])
    assert columns.get("a").tolist() == [1.5, -2, 0.25]
    assert columns.get("b").tolist() == ["1,5", "x", "2"]
    gaps = Columns([write_table(tmp_path / "b.csv", [{"a": "", "b": ""}, *rows], ";")])
    source = fitted_vector(gaps, ["a"], np.arange(4))
    assert source.rows(gaps, text=False)[0].shape == (4, 2)
    commas = Columns([write_table(tmp_path / "c.csv", rows)])
    assert commas.get("a").tolist() == ["1,5", "-2", "0,25"]


def test_a_table_of_many_strings_is_the_same_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [
        ('kind = "multiclass"', 'kind = "multilabel"\nseparator = "|"'),
        ('labels = "label"', 'labels = "tags"\ntypes = "label"'),
    ]
    expected = load(tmp_path, *changes)
    drawn = load(tmp_path, *changes, ('split = "part"', DRAWN + ', group = "patient"}'))
    monkeypatch.setattr(text_arrays, "_WIDE", 10)
    task = load(tmp_path, *changes)
    assert Columns([tmp_path / "pets.csv"]).get("title").dtype.kind == "T"
    assert task.class_names == expected.class_names
    for own, other in ((task.labels, expected.labels), (task.part, expected.part)):
        assert np.array_equal(own, other)
    facts = task.modality("facts").data, expected.modality("facts").data
    assert np.array_equal(*facts)
    again = load(tmp_path, *changes, ('split = "part"', DRAWN + ', group = "patient"}'))
    assert np.array_equal(again.part, drawn.part)
    (tmp_path / "a.txt").write_text("a file", encoding="utf-8")
    files = Columns([write_table(tmp_path / "files.csv", [{"title": "a.txt"}] * 9)])
    assert Source("title", TextFiles()).rows(files, text=True)[0].tolist() == ["a file"]


@pytest.mark.parametrize("group", ["", ', group = "patient"'])
@pytest.mark.parametrize("without", ["", "NaN"])
def test_rows_without_a_label_change_nothing(tmp_path: Path, without: str, group: str) -> None:
    rows = rows_of()
    extra = [{**rows[n], "label": without, "age": 900, "patient": f"q{n}"} for n in range(5)]
    drawn = ('split = "part"', DRAWN + group + "}")
    expected = load(tmp_path, drawn, rows=rows)
    skipped = (drawn[0], drawn[1] + '\nunlabelled = "skip"')
    task = load(tmp_path, skipped, rows=[*rows, *extra])
    assert len(task.left_out) == 5
    assert np.array_equal(task.part, expected.part)
    every = np.arange(len(rows))
    facts, other = task.modality("facts"), expected.modality("facts")
    assert np.array_equal(facts.data[facts.rows_of(every)], other.data[every])
    assert facts.source == other.source


def test_names_of_parts_in_any_case(tmp_path: Path) -> None:
    expected = load(tmp_path)
    rows = [{**row, "part": f" {row['part'].title()} "} for row in rows_of()]
    assert np.array_equal(load(tmp_path, rows=rows).part, expected.part)


def test_groups_stay_together(tmp_path: Path) -> None:
    task = load(tmp_path, ('split = "part"', DRAWN + ', group = "patient"}'), rows=rows_of(80))
    groups = np.arange(80) // 4
    own = [set(groups[task.part == part]) for part in range(3)]
    assert not own[0] & own[1] | own[0] & own[2] | own[1] & own[2]
    assert np.bincount(task.part).tolist() == [40, 20, 20]
    rows = rows_of()
    rows[3]["patient"] = rows[9]["patient"] = ""
    with pytest.raises(UserError, match=r"rows without a group \(2\): 3, 9"):
        load(tmp_path, ('split = "part"', DRAWN + ', group = "patient"}'), rows=rows)


def test_groups_of_any_size_keep_fractions_and_classes() -> None:
    rng = np.random.default_rng(1)
    groups = rng.choice(200, size=2000, p=rng.dirichlet(np.full(200, 0.7)))
    labels = np.where(rng.random(200) < 0.2, 1, 0)[groups]
    part = draw_groups(labels, groups, (0.6, 0.2, 0.2), 0)
    assert np.array_equal(part, draw_groups(labels, groups, (0.6, 0.2, 0.2), 0))
    shares = [np.mean(part == number) for number in range(3)]
    assert np.allclose(shares, [0.6, 0.2, 0.2], atol=0.02)
    rates = [labels[part == number].mean() for number in range(3)]
    assert np.allclose(rates, labels.mean(), atol=0.03)
    # A group that is most of the data leaves something for each part.
    uneven = np.array([0] * 90 + [1] * 5 + [2] * 5)
    assert set(draw_groups(np.zeros(100), uneven, (0.6, 0.2, 0.2), 0)) == {0, 1, 2}


@pytest.mark.parametrize("lists", [False, True])
def test_tags(tmp_path: Path, lists: bool) -> None:
    rows = rows_of()
    rows[6]["tags"] = "round|rare"  # of test
    changes = [('"multiclass"', '"multilabel"'), ('"label"', '"tags"')]
    if lists:
        for row in rows:
            row["tags"] = [tag.strip() for tag in row["tags"].split("|") if tag]
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / "pets.jsonl").write_text(text, encoding="utf-8")
        changes += [("pets.csv", "pets.jsonl"), ('"age", ', "")]
    else:
        with pytest.raises(UserError, match=r"separator = '\|'"):
            load(tmp_path, *changes, rows=rows)
        changes += [("split =", 'separator = "|"\nsplit =')]
    task = load(tmp_path, *changes, rows=rows if not lists else None)
    assert task.class_names == ("big", "red", "round")
    assert task.labels[:4].tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]
    (note,) = notes(task, "validation")
    assert "'rare' (row 6)" in note
    names = 'class_names = ["big", "red", "round"]\nsplit ='
    with pytest.raises(UserError, match=r"received 'rare' \(row 6\), expected tags of class_names"):
        load(tmp_path, *changes, ("split =", names), rows=rows if not lists else None)


def test_files_that_parts_share_are_told(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("soxr")
    table = media_table(tmp_path, 24)
    photo = table[0]["photo"]
    table[6]["photo"], table[9]["photo"] = f"./{photo}", tmp_path / photo  # validation, test
    write_table(tmp_path / "pets.csv", table)
    (tmp_path / "task.toml").write_text(MEDIA_TASK, encoding="utf-8")
    told = list(notes(load_task_file(tmp_path / "task.toml"), "validation"))
    assert [note.split(":")[1].strip() for note in told] == [
        "1 files of validation are in train too",
        "1 files of test are in train too",
    ]
    assert table[0]["photo"] in told[0]
