"""Tables as people have them: labels of any form, blanks, one long text, another byte order."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bmnas.backbones import build_backbone
from bmnas.machine.errors import UserError
from bmnas.tasks import check_task, load_task
from bmnas.tasks.task import Task

ROWS = 24
PARTS = np.array(["train", "train", "val", "test"])[np.arange(ROWS) % 4]


def write_task(folder: Path, labels: str = "label", extra: str = "", data: str = '"t.csv"') -> Path:
    np.savez(folder / "d.npz", b=np.random.default_rng(0).normal(size=(ROWS, 3)))
    (folder / "task.toml").write_text(
        f'name = "t"\nkind = "multiclass"\ndata = ["d.npz", {data}]\nlabels = "{labels}"\n'
        f'split = "part"\n{extra}\n[modality.t]\narray = "text"\ntype = "text"\n'
        '[modality.b]\narray = "b"\ntype = "vector"\n'
    )
    return folder / "task.toml"


def write_csv(folder: Path, labels: Sequence[object], texts: Sequence[str] | None = None) -> None:
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "part"])
        writer.writerows(zip(texts or ["a word"] * ROWS, labels, PARTS, strict=True))


def cycled(*labels: object) -> list[object]:
    return [labels[row // 4 % len(labels)] for row in range(ROWS)]


def csv_task(folder: Path, labels: Sequence[object], extra: str = "") -> Task:
    write_csv(folder, labels)
    return load_task(write_task(folder, extra=extra))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((1, 2, 3), ("1", "2", "3")),
        ((-1, 1), ("-1", "1")),
        (("-1", "+1"), ("+1", "-1")),
        (("01", "02"), ("01", "02")),
        ((0, 1, 2), ("0", "1", "2")),
        ((10, 9), ("9", "10")),
        (("0.5", "1.5"), ("0.5", "1.5")),
        (("True", "False"), ("False", "True")),
        (("yes", "no"), ("no", "yes")),
    ],
)
def test_labels_of_a_csv_become_class_names(
    labels: tuple[object, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    task = csv_task(tmp_path, cycled(*labels))
    check_task(task)
    assert task.class_names == names
    assert [names[k] for k in task.labels] == [str(label) for label in cycled(*labels)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 2, 3], ("1", "2", "3")),
        ([-1, 1], ("-1", "1")),
        ([1.0, 2.0], ("1", "2")),
        ([0.5, -2.0], ("-2", "0.5")),
        ([False, True], ("false", "true")),
        (np.array([3, 7], ">i4"), ("3", "7")),
        (np.array(["b", "a"], ">U1"), ("a", "b")),
        ([200, 3], ("3", "200")),
    ],
)
def test_labels_of_an_array_become_class_names(
    labels: Sequence[object], names: tuple[str, ...], tmp_path: Path
) -> None:
    write_csv(tmp_path, cycled("x"))
    values = np.asarray(labels)
    np.savez(tmp_path / "y.npz", y=values[np.arange(ROWS) // 4 % len(values)])
    task = load_task(write_task(tmp_path, labels="y", data='"t.csv", "y.npz"'))
    check_task(task)
    assert task.class_names == names
    written = [str(value).lower().removesuffix(".0") for value in values.tolist()]
    assert [names[k] for k in task.labels] == cycled(*written)


def test_booleans_of_a_jsonl_become_class_names(tmp_path: Path) -> None:
    rows = [
        json.dumps({"text": "a", "part": part, "label": label})
        for part, label in zip(PARTS.tolist(), cycled(True, False), strict=True)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    task = load_task(write_task(tmp_path, data='"t.jsonl"'))
    check_task(task)
    assert task.class_names == ("false", "true")


def test_numbers_that_nobody_shares_are_no_classes(tmp_path: Path) -> None:
    write_csv(tmp_path, cycled("x"))
    np.savez(tmp_path / "y.npz", y=np.linspace(0, 1, 3 * ROWS)[:ROWS])
    (tmp_path / "task.toml").unlink(missing_ok=True)
    path = write_task(tmp_path, labels="y", data='"t.csv", "y.npz"')
    path.write_text(
        path.read_text().replace(
            'split = "part"', "split = {train=0.9, validation=0.05, test=0.05}"
        )
    )
    with pytest.raises(
        UserError, match=r"different numbers among 2[0-9] samples .*expected classes"
    ):
        load_task(path)


def test_whole_numbers_are_class_numbers_where_there_are_names(tmp_path: Path) -> None:
    task = csv_task(tmp_path, cycled(0, 1), 'class_names = ["cat", "dog"]')
    assert task.class_names == ("cat", "dog")
    assert task.labels.tolist() == cycled(0, 1)


def test_rows_without_a_label_are_named_or_left_out(tmp_path: Path) -> None:
    labels = cycled("cat", "dog")
    labels[4], labels[9], labels[0] = "", "  ", "cat "
    with pytest.raises(UserError, match="2 of 24 rows have no label: rows 4, 9: give them one, or"):
        csv_task(tmp_path, labels)
    task = csv_task(tmp_path, labels, 'unlabelled = "skip"')
    check_task(task)
    assert task.class_names == ("cat", "dog")
    assert len(task.labels) == len(task.part) == ROWS - 2
    assert task.labels[0] == 0
    assert task.left_out == ("row 4, without a label", "row 9, without a label")
    assert "labels: blanks around 'cat ' are left out, in 1 rows: 0" in task.remarks
    assert [len(m.rows_of(np.arange(22))) for m in task.modalities] == [22, 22]


def test_a_blank_number_is_named_with_its_row(tmp_path: Path) -> None:
    write_csv(tmp_path, cycled("x", "y"))
    path = write_task(tmp_path)
    with (tmp_path / "n.csv").open("w", encoding="utf-8") as file:
        file.writelines(["age\n", *('""\n' if row == 7 else "3.5\n" for row in range(ROWS))])
    path.write_text(
        path.read_text().replace('"d.npz"', '"d.npz", "n.csv"')
        + '[modality.n]\narray = "age"\ntype = "vector"\n'
    )
    with pytest.raises(
        UserError, match=r"modality n: .* 1 of which are no numbers \('' in row 7\)"
    ):
        check_task(load_task(path))


def test_memory_is_in_proportion_to_the_file_however_long_one_text_is(tmp_path: Path) -> None:
    texts = ["word " * 8] * 4000
    texts[8] = "word " * 60_000
    with (tmp_path / "long.csv").open("w", encoding="utf-8") as file:
        file.write("text,label,part\n")
        file.writelines(
            f"{text},{'ab'[row % 2]},{PARTS[row % 4]}\n" for row, text in enumerate(texts)
        )
    path = write_task(tmp_path, data='"long.csv"')
    np.savez(tmp_path / "d.npz", b=np.zeros((4000, 2)))
    size = (tmp_path / "long.csv").stat().st_size
    tracemalloc.start()
    task = load_task(path)
    check_task(task)
    part = task.modality("t")
    train = part.data[task.samples("train")]
    backbone = build_backbone(part, classes=2, rows=train)
    encoded = backbone.encode(train)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert encoded.shape == (2000, 128)
    assert str(part.data[8]) == texts[8]
    assert backbone.longer(part.data) == 1
    # One of a width for all would be 4.8 GB.
    assert peak < 60 * size + 40_000_000


@pytest.mark.parametrize("stored", ["npz", "npy"])
def test_numbers_of_another_byte_order_are_the_same_numbers(stored: str, tmp_path: Path) -> None:
    sounds = np.random.default_rng(0).integers(-9000, 9000, (ROWS, 800)).astype(">i2")
    write_csv(tmp_path, cycled("x", "y"))
    if stored == "npz":
        np.savez(tmp_path / "s.npz", s=sounds)
    else:
        np.save(tmp_path / "s.npy", sounds)
    path = write_task(tmp_path, data=f'"t.csv", "s.{stored}"')
    path.write_text(
        path.read_text() + '[modality.s]\narray = "s"\ntype = "waveform"\nsample_rate = 8000\n'
    )
    task = load_task(path)
    check_task(task)
    part = task.modality("s")
    backbone = build_backbone(part, classes=2, rows=part.data)
    encoded = backbone.encode(part.data)
    assert encoded.dtype == np.int16
    assert encoded.dtype.isnative
    assert np.array_equal(encoded, sounds)
